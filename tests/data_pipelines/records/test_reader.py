"""Shards: framing, random access, and every kind of damage."""

import dataclasses
import errno
import gzip
import hashlib
import multiprocessing
import os
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.records import writer as shard_writer
from data_pipelines.records.reader import (
    CorruptRecordError,
    IndexFileError,
    RecordSource,
    ShardWriter,
    read_index,
)
from tests.data_pipelines.records.shards import (
    CHANGES,
    FUZZ,
    changed,
    content,
    offset_of,
    small_shard,
    write_shard,
)


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "a.tfrecord")


@pytest.fixture
def shards(tmp_path):
    counts = (3, 0, 5, 1, 4)
    return [
        str(write_shard(tmp_path / f"s-{k}.tfrecord", count, k)) for k, count in enumerate(counts)
    ]


def crc32c(data: bytes) -> int:
    """Bit by bit, independent of the library."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_framing_is_that_of_tfrecord(tmp_path):
    path = tmp_path / "x.tfrecord"
    with ShardWriter(path) as writer:
        writer.append(b"hello", 1)

    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", 5)
    assert path.read_bytes() == length + masked(length) + b"hello" + masked(b"hello")


def test_writer_reports_what_it_wrote(tmp_path):
    path = tmp_path / "x.tfrecord"
    with ShardWriter(path) as writer:
        for i in range(3):
            writer.append(content(i), num_frames=7)
        assert not path.exists()
    data = path.read_bytes()
    assert (writer.count, writer.bytes, writer.frames) == (3, len(data), 21)
    assert writer.sha256 == hashlib.sha256(data).hexdigest()
    assert writer.index_crc == read_index(path).crc
    assert sorted(os.listdir(tmp_path)) == ["x.tfrecord", "x.tfrecord.idx"]


def test_failing_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), ShardWriter(tmp_path / "x.tfrecord") as writer:
        writer.append(b"data", 1)
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_writer_notices_that_its_file_was_replaced(tmp_path):
    path = tmp_path / "x.tfrecord"
    other = tmp_path / "other"
    other.touch()
    with pytest.raises(RuntimeError, match="replaced by another"), ShardWriter(path) as writer:
        writer.append(b"data", 1)
        os.replace(other, f"{path}.tmp")
    assert not path.exists()


def test_new_shard_removes_the_index_of_the_old_one_first(tmp_path, monkeypatch):
    """A crash between the two renames must not leave an old index beside a new shard."""
    path = write_shard(tmp_path / "x.tfrecord", 2)
    crash = OSError("crash")
    monkeypatch.setattr(shard_writer, "write_index", lambda *a, **k: (_ for _ in ()).throw(crash))
    with pytest.raises(OSError, match="crash"):
        write_shard(path, 5)
    assert not (tmp_path / "x.tfrecord.idx").exists()
    assert len(RecordSource([str(path)])) == 5


def test_empty_shard_round_trips(tmp_path):
    path = write_shard(tmp_path / "x.tfrecord", 0)
    assert path.stat().st_size == 0
    assert len(RecordSource([str(path)])) == 0


def test_source_spans_shards(shards):
    source = RecordSource(shards)
    expected = [content(i, k) for k, count in enumerate((3, 0, 5, 1, 4)) for i in range(count)]
    assert len(source) == 13
    assert list(source) == expected
    assert [source[i] for i in (12, 0, 7)] == [expected[i] for i in (12, 0, 7)]
    assert source[np.int64(4)] == expected[4]


def test_locate_names_shard_record_and_offset(shards):
    source = RecordSource(shards)
    assert source.locate(0) == (shards[0], 0, 0)
    assert source.locate(3) == (shards[2], 0, 0)
    assert source.locate(8) == (shards[3], 0, 0)
    path, record, offset = source.locate(4)
    assert (path, record, offset) == (shards[2], 1, len(content(0, 2)) + 16)
    assert source.num_frames(4) == 2


@pytest.mark.parametrize("index", [13, -1, 10**12])
def test_numbers_outside_raise_index_error(shards, index):
    source = RecordSource(shards)
    for method in (source.__getitem__, source.locate, source.num_frames):
        with pytest.raises(IndexError, match="of 13"):
            method(index)


def test_source_without_index_scans(shards):
    for shard in shards:
        os.unlink(shard + ".idx")
    source = RecordSource(shards)
    assert source[5] == content(2, 2)
    assert source.num_frames(5) == -1


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


def open_descriptors(paths: list[str]) -> int:
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}") in paths
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return count


@needs_proc
def test_open_files_are_bounded_and_lazy(shards):
    source = RecordSource(shards, max_open=2)
    assert open_descriptors(shards) == 0
    for _ in range(2):
        list(source)
        assert open_descriptors(shards) == 2
    source.close()
    assert open_descriptors(shards) == 0
    assert source[0] == content(0)


@needs_proc
def test_pickled_source_carries_no_descriptors(shards):
    source = RecordSource(shards, check_crc=False)
    list(source)
    copy = pickle.loads(pickle.dumps(source))
    before = open_descriptors(shards)
    assert copy[12] == source[12]
    assert open_descriptors(shards) == before + 1
    assert repr(copy) == repr(source) and copy.check_crc is False


def test_repr_is_stable_and_tells_datasets_apart(shards, tmp_path):
    text = repr(RecordSource(shards))
    assert text == repr(RecordSource(shards))
    assert "5 shards" in text and "13 records" in text and " 0x" not in text
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for shard in shards:
        for name in (shard, shard + ".idx"):
            (moved / os.path.basename(name)).write_bytes(Path(name).read_bytes())
    assert repr(RecordSource([str(moved / os.path.basename(s)) for s in shards])) == text
    assert repr(RecordSource(shards[::-1])) != text


def _read_in_child(source: RecordSource, queue) -> None:
    queue.put([source[i] for i in range(len(source))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_source_works_in_child_processes(shards, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    source = RecordSource(shards, max_open=2)
    expected = list(source)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    with source._lock:  # as if another thread of the parent were reading at the fork
        child = context.Process(target=_read_in_child, args=(source, queue), daemon=True)
        child.start()
    assert queue.get(timeout=20) == expected
    child.join()
    assert list(source) == expected


def test_threads_share_a_source_with_one_open_file(shards):
    source = RecordSource(shards, max_open=1)
    expected = list(source)
    wrong: list[int] = []

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, len(source), 300):
            if source[i] != expected[i]:
                wrong.append(int(i))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def test_bit_flip_in_data_is_found_and_confined(shard):
    offset = offset_of(shard, 4)
    flip(shard, offset + 30)
    source = RecordSource([str(shard)])
    with pytest.raises(CorruptRecordError, match=r"checksum of the .* data bytes") as caught:
        source[4]
    error = caught.value
    assert (error.shard, error.record, error.offset) == (str(shard), 4, offset)
    assert f"{shard}: record 4 at byte {offset}" in str(error) and "repeat the ingest" in str(error)
    assert [source[i] for i in (3, 5)] == [content(3), content(5)]


def test_check_crc_off_delivers_the_bytes_as_they_are(shard):
    flip(shard, offset_of(shard, 4) + 30)
    data = RecordSource([str(shard)], check_crc=False)[4]
    assert data != content(4) and len(data) == len(content(4))


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("byte", [0, 7, 8])
def test_bit_flip_in_length_costs_one_record_with_an_index(shard, byte, bit):
    flip(shard, offset_of(shard, 4) + byte, bit)
    source = RecordSource([str(shard)])
    with pytest.raises(CorruptRecordError, match="checksum of the length"):
        source[4]
    assert source[5] == content(5)
    os.unlink(f"{shard}.idx")
    with pytest.raises(CorruptRecordError, match=r"record 4 .*checksum of the length"):
        RecordSource([str(shard)])


@pytest.mark.parametrize("left", [1, 13, 16, 100])
def test_truncation_inside_a_record_is_found_with_and_without_index(shard, left):
    os.truncate(shard, offset_of(shard, 9) + left)
    with pytest.raises(IndexFileError, match="truncated, older, or of another"):
        RecordSource([str(shard)])
    os.unlink(f"{shard}.idx")
    with pytest.raises(CorruptRecordError, match=r"record 9 .*truncated"):
        RecordSource([str(shard)])


def test_truncation_at_a_record_boundary_is_found_by_the_index(shard):
    os.truncate(shard, offset_of(shard, 9))
    with pytest.raises(IndexFileError, match="its index describes"):
        RecordSource([str(shard)])


def test_shard_that_shrinks_while_open_is_reported(shard):
    source = RecordSource([str(shard)])
    source[0]
    os.truncate(shard, offset_of(shard, 9) + 100)
    with pytest.raises(CorruptRecordError, match="truncated: 88 of"):
        source[9]


def test_shard_that_is_deleted_after_opening_is_reported(shard):
    source = RecordSource([str(shard)])
    os.unlink(shard)
    with pytest.raises(FileNotFoundError, match=r"tfrecord: was there when .* is gone now; put it"):
        source[3]


def test_failing_disk_is_reported_with_the_file(shard, monkeypatch):
    source = RecordSource([str(shard)])
    source[0]

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match=rf"Input/output error: '{shard}'"):
        source[3]


@pytest.mark.parametrize(
    "data",
    [b"plain text, much longer than twelve bytes", gzip.compress(b"x" * 500), b"short"],
    # gzip writes the time into its header: as an id it would differ between test workers.
    ids=["text", "gzip", "short"],
)
def test_files_that_are_no_shards_are_refused(tmp_path, data):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(data)
    with pytest.raises(CorruptRecordError, match="record 0 at byte 0"):
        RecordSource([str(path)])


def two_of_equal_size(directory: Path) -> None:
    for name, parts in (("a", (b"x" * 10, b"y" * 30)), ("b", (b"x" * 30, b"y" * 10))):
        with ShardWriter(directory / name) as writer:
            for part in parts:
                writer.append(part, 1)
    os.replace(directory / "a.idx", directory / "b.idx")


def test_index_of_another_shard_of_the_same_size(tmp_path):
    two_of_equal_size(tmp_path)
    with pytest.raises(CorruptRecordError, match=r"are not those in the index: swapped"):
        RecordSource([str(tmp_path / "b")])[1]


def test_index_of_another_shard_without_a_binding(tmp_path):
    """As version 1 has none: only the framing at the offset gives the swap away."""
    two_of_equal_size(tmp_path)
    index = dataclasses.replace(read_index(tmp_path / "b"), binding=None)
    with pytest.raises(CorruptRecordError, match=r"record of 30 bytes here, the index says 10"):
        RecordSource([str(tmp_path / "b")], indexes=[index])[0]


def test_swapped_shards_with_records_of_equal_sizes_are_found(tmp_path):
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name) as writer:
            for i in range(3):
                writer.append(f"{name}{i}".encode(), 1)
    os.replace(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CorruptRecordError, match=r"swapped with another shard"):
        RecordSource([str(tmp_path / "b")])[1]


@pytest.mark.parametrize("record", [0, 9])
def test_damaged_checksum_of_an_end_record_costs_that_record_only(shard, record):
    flip(shard, offset_of(shard, record) + 12 + len(content(record)))
    source = RecordSource([str(shard)])
    with pytest.raises(CorruptRecordError, match="checksum of the"):
        source[record]
    assert source[5] == content(5)


def test_missing_shard_and_no_shards(tmp_path, shard):
    with pytest.raises(FileNotFoundError, match="no-such"):
        RecordSource([str(tmp_path / "no-such")])
    os.unlink(shard)  # its index is still there
    with pytest.raises(FileNotFoundError, match="the shard is missing"):
        RecordSource([str(shard)])
    with pytest.raises(ValueError, match="no shards given"):
        RecordSource([])
    with pytest.raises(ValueError, match="0 indexes for 1 shards"):
        RecordSource([str(shard)], indexes=[])


def test_corrupt_record_error_survives_pickling():
    error = CorruptRecordError("s", 3, 77, "is bad", "Do this")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "s: record 3 at byte 77: is bad. Do this."
    assert copy.record == 3


@FUZZ
@given(changes=CHANGES, length=st.integers(0, 1000))
def test_fuzz_damaged_shard(tmp_path, changes, length):
    shard = small_shard(tmp_path)
    damaged = tmp_path / "damaged.tfrecord"
    damaged.write_bytes(changed(shard.read_bytes(), changes, length))
    try:
        source = RecordSource([str(damaged)])
    except (CorruptRecordError, IndexFileError):
        source = None
    originals = list(RecordSource([str(shard)]))
    if source is not None:
        for i in range(len(source)):
            try:
                assert source[i] in originals
            except CorruptRecordError:
                continue
    # With the index of the intact shard every intact record stays readable.
    damaged.write_bytes(changed(shard.read_bytes(), changes, shard.stat().st_size))
    source = RecordSource([str(damaged)], indexes=[read_index(shard)])
    for i, original in enumerate(originals):
        try:
            assert source[i] == original
        except CorruptRecordError:
            continue
