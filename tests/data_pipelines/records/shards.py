"""Small shards and damage to them, for the tests of the record layer."""

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from data_pipelines.records.reader import ShardWriter, read_index


def content(i: int, shard: int = 0) -> bytes:
    return f"shard {shard} record {i} ".encode() * (20 + i)


def write_shard(path: Path, count: int = 10, shard: int = 0) -> Path:
    with ShardWriter(path) as writer:
        for i in range(count):
            writer.append(content(i, shard), num_frames=i + 1)
    return path


def offset_of(shard: Path, record: int) -> int:
    return int(read_index(shard).entries[record]["offset"])


def small_shard(directory: Path) -> Path:
    path = directory / "fuzz.tfrecord"
    if not path.exists():
        with ShardWriter(path) as writer:
            for i in range(4):
                writer.append(bytes([i]) * (5 * i), i)
    return path


FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=5)


def changed(data: bytes, changes: list[tuple[int, int]], length: int) -> bytes:
    result = bytearray(data)
    for position, value in changes:
        result[position % len(result)] = value
    return bytes(result[: length % (len(result) + 1)])
