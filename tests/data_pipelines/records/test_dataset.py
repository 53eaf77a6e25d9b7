"""Reading clips by ranges: few bytes, the same pixels, and damage that is still found."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import simplejpeg

from data_pipelines.records import manifest, schema, storage
from data_pipelines.records.dataset import Dataset, UnreadableRecordError, open_dataset
from data_pipelines.records.index import read_index
from data_pipelines.records.reader import RecordSource, ShardWriter
from data_pipelines.records.reindex import reindex
from tests.data_pipelines.records.flaky import flaky, upload
from tests.data_pipelines.records.test_index import version_1

FRAMES = 300
WANTED = np.arange(16) * 4 + 100
SHARD = "toy-train-00000-of-00001.tfrecord"


def pictures(seed: int, count: int) -> tuple[bytes, ...]:
    """JPEG frames of 16 KB or so, all different."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, 64, 80, 3), np.uint8)
    return tuple(simplejpeg.encode_jpeg(frame, 98, "RGB", "420") for frame in noise)


def record(i: int, frames: tuple[bytes, ...]) -> schema.Record:
    return schema.Record(
        media_id=f"clip {i}",
        frames=frames,
        timestamps_us=[1000 * t + i for t in range(len(frames))],
        fps=30.0,
        height=64,
        width=80,
        labels=(i % 2,),
        label_names=(("sit", "jump")[i % 2],),
        captions=("ü",),
        extra={"score": 0.5},
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("set")
    frames = pictures(0, FRAMES)
    records = [record(0, frames), record(1, frames[::-1]), record(2, frames[:5])]
    with ShardWriter(directory / SHARD) as writer:
        for each in records:
            writer.append(schema.encode(each), len(each.frames))
    shard = manifest.ShardInfo(SHARD, 3, writer.bytes, writer.sha256, writer.index_crc)
    split = manifest.SplitInfo((shard,), 3, 605, (2, 1))
    manifest.save(
        manifest.Manifest(str(directory), "toy", 1, ("sit", "jump"), False, {}, {"train": split})
    )
    return directory


@pytest.fixture
def directory(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "set"))


def whole(directory: Path) -> Dataset:
    """The same dataset without its frame tables."""
    opened = open_dataset(str(directory), "train")
    index = dataclasses.replace(read_index(directory / SHARD), table_offset=0)
    source = RecordSource([str(directory / SHARD)], indexes=[index])
    assert source.table(0) is None
    return dataclasses.replace(opened, source=source)


def test_a_clip_moves_a_small_part_of_its_record(original):
    dataset = open_dataset(str(original), "train")
    dataset.source[2]  # opens the shard
    before = dataset.source.bytes_read
    loaded = dataset.load(0)
    assert len(loaded.frames) == FRAMES and loaded.labels == (0,) and loaded.media_id == "clip 0"
    dataset.frames(0, loaded, WANTED)
    length = int(read_index(original / SHARD).entries[0]["length"])
    assert dataset.source.bytes_read - before <= 0.08 * length
    # Two tie the index to its shard, three read record 2; then the frame table, the context, and
    # one for each frame, none of which are neighbours.
    assert dataset.source.requests == 2 + 3 + 1 + 1 + 16


def test_neighbours_and_frames_close_together_are_read_together(original):
    dataset = open_dataset(str(original), "train")
    loaded = dataset.load(0)
    before = dataset.source.requests
    dataset.frames(0, loaded, np.arange(20, 36))
    assert dataset.source.requests - before == 1
    index = read_index(original / SHARD)
    generous = RecordSource([str(original / SHARD)], indexes=[index], merge_gap=1 << 20)
    dataset = dataclasses.replace(dataset, source=generous)
    loaded = dataset.load(0)
    before = generous.requests
    dataset.frames(0, loaded, WANTED)
    assert generous.requests - before == 1


@pytest.mark.parametrize("gap", [None, 0, 1 << 20])
def test_pixels_and_fields_are_those_of_whole_records(original, gap):
    source = RecordSource([str(original / SHARD)], merge_gap=gap)
    parts = dataclasses.replace(open_dataset(str(original), "train"), source=source)
    full = whole(original)
    for index, wanted in ((0, WANTED), (1, WANTED[::-1]), (2, np.array([4, 0, 0, 2]))):
        ours, theirs = parts.load(index), full.load(index)
        for a, b in zip(
            parts.frames(index, ours, wanted), full.frames(index, theirs, wanted), strict=True
        ):
            assert np.array_equal(a, b)
        assert ours == theirs
        assert ours.frames[-1] == theirs.frames[-1] and ours.frames[1:3] == theirs.frames[1:3]
        assert list(ours.frames) == list(theirs.frames)


def test_frame_times_are_read_when_asked_for(original):
    dataset = open_dataset(str(original), "train")
    loaded = dataset.load(1)
    before = dataset.source.requests
    assert len(loaded.timestamps_us) == FRAMES and dataset.source.requests == before
    assert loaded.timestamps_us[2] == 2001 and loaded.timestamps_us[:2] == (1, 1001)
    assert np.asarray(loaded.timestamps_us).sum() == sum(1000 * t + 1 for t in range(FRAMES))
    assert dataset.source.requests == before + 1


def test_a_loaded_record_survives_pickling(original):
    loaded = open_dataset(str(original), "train").load(2)
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy == loaded and isinstance(copy.frames, tuple)
    with pytest.raises(IndexError):
        loaded.frames[5]


def part_offset(directory: Path, index: int, name: str, number: int = 0) -> int:
    """Place in the shard of the middle byte of a part of a record."""
    source = RecordSource([str(directory / SHARD)])
    table = source.table(index)
    assert table is not None
    parts = {"frames": lambda: table.frames[number], "context": lambda: table.context}
    part = parts.get(name, lambda: table.lists[name])()
    return source.locate(index)[2] + 12 + int(part["offset"]) + int(part["length"]) // 2


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_damage_in_a_wanted_frame_is_found_and_confined(directory):
    flip(directory / SHARD, part_offset(directory, 1, "frames", 108))
    dataset = open_dataset(str(directory), "train")
    loaded = dataset.load(1)
    with pytest.raises(UnreadableRecordError, match=rf"{SHARD}: record 1 at byte .*checksum of"):
        dataset.frames(1, loaded, WANTED)
    dataset.frames(1, loaded, WANTED + 1)
    dataset.frames(0, dataset.load(0), WANTED)
    trusting = open_dataset(str(directory), "train", check_crc=False)
    assert trusting.load(1).frames[108] != dataset.load(0).frames[FRAMES - 1 - 108]


def test_damage_in_the_context_and_in_the_times_is_found(directory):
    flip(directory / SHARD, part_offset(directory, 0, "context"))
    flip(directory / SHARD, part_offset(directory, 1, "image/timestamp"))
    dataset = open_dataset(str(directory), "train")
    with pytest.raises(UnreadableRecordError, match="checksum of"):
        dataset.load(0)
    loaded = dataset.load(1)
    with pytest.raises(UnreadableRecordError, match="checksum of"):
        loaded.timestamps_us[0]


def test_damage_in_the_frame_table_is_found_and_confined(directory):
    index = read_index(directory / SHARD)
    path = directory / f"{SHARD}.idx"
    flip(path, index.table_offset + int(index.entries[0]["block"]) + 100)
    dataset = open_dataset(str(directory), "train")
    with pytest.raises(UnreadableRecordError, match=r"\.idx: record 1 .*checksum of the frame"):
        dataset.load(1)
    assert len(dataset.load(0).frames) == FRAMES


def test_a_shard_that_shrinks_while_open_is_reported(directory):
    dataset = open_dataset(str(directory), "train")
    loaded = dataset.load(2)
    shard = directory / SHARD
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size - 20_000)
    with pytest.raises(UnreadableRecordError, match="truncated: "):
        dataset.frames(2, loaded, np.arange(5))


def make_version_1(directory: Path) -> None:
    data = version_1(directory / SHARD)
    (directory / f"{SHARD}.idx").write_bytes(data)
    found = manifest.load(directory)
    split = found.split("train")
    crc = struct.unpack("<I", data[-4:])[0]
    shards = (dataclasses.replace(split.shards[0], index_crc=crc),)
    changed = {"train": dataclasses.replace(split, shards=shards)}
    manifest.save(dataclasses.replace(found, splits=changed))


def test_datasets_with_indexes_of_version_1_are_read_whole_until_reindexed(directory):
    before = (directory / f"{SHARD}.idx").read_bytes()
    listing = (directory / "manifest.json").read_bytes()
    make_version_1(directory)
    (directory / f"{SHARD}.done").write_text('{"index_crc": 1, "name": "kept"}')
    dataset = open_dataset(str(directory), "train")
    assert dataset.source.table(0) is None and len(dataset.load(0).frames) == FRAMES
    said: list[str] = []
    assert reindex(str(directory), said.append) == 0
    assert "new version" in said[0]
    assert (directory / f"{SHARD}.idx").read_bytes() == before
    assert (directory / "manifest.json").read_bytes() == listing
    crc = read_index(directory / SHARD).crc
    assert (directory / f"{SHARD}.done").read_text() == f'{{"index_crc": {crc}, "name": "kept"}}'
    assert open_dataset(str(directory), "train").source.table(0) is not None


def test_opening_does_not_read_the_frame_tables(original):
    index = read_index(original / SHARD)
    opening = index.table_offset
    assert index.crc == google_crc32c.value((original / f"{SHARD}.idx").read_bytes()[: opening - 4])
    with flaky() as system:
        upload(original, "flaky://b/set")
        open_dataset("flaky://b/set", "train")
        assert ("/b/set/" + SHARD + ".idx", 0, opening) in system.reads


def test_clips_of_remote_shards_move_few_bytes_and_give_the_same_pixels(original):
    local = open_dataset(str(original), "train")
    with flaky() as system:
        upload(original, "flaky://b/set")
        dataset = open_dataset("flaky://b/set", "train")
        assert storage.is_remote(dataset.source.shards[0])
        loaded = dataset.load(0)
        frames = dataset.frames(0, loaded, WANTED)
        length = int(read_index(original / SHARD).entries[0]["length"])
        moved = sum(size for path, _, size in system.reads if path.endswith(SHARD))
    for a, b in zip(frames, local.frames(0, local.load(0), WANTED), strict=True):
        assert np.array_equal(a, b)
    # These frames are far smaller than those of real videos, so gaps are cheap to read through.
    assert moved < 0.25 * length


def test_the_check_of_a_table_against_its_record(directory):
    source = RecordSource([str(directory / SHARD)])
    source.check_table(0, source[0])
    with pytest.raises(Exception, match="does not describe the record"):
        source.check_table(0, source[1])
