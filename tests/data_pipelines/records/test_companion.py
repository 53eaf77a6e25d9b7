"""Companion shards: arrays beside the records of a split, and refusing those of another."""

import concurrent.futures
import json
import os
import pickle
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.records.companion import (
    CompanionError,
    CompanionWriter,
    decode,
    encode,
    open_companion,
)
from data_pipelines.records.manifest import Manifest, save
from data_pipelines.records.reader import CorruptRecordError, ShardWriter
from tests.data_pipelines.records.damage import damaged
from tests.data_pipelines.records.shards import offset_of
from tests.data_pipelines.records.test_manifest import write_split


def make_dataset(directory: Path, counts=(3, 2), name="toy") -> Manifest:
    directory.mkdir()
    splits = {
        "train": write_split(directory, "train", list(counts)),
        "test": write_split(directory, "test", [2]),
    }
    found = Manifest(
        directory=str(directory),
        name=name,
        schema_version=1,
        classes=("a", "b"),
        flip_changes_label=False,
        options={},
        splits=splits,
    )
    save(found)
    return found


def features(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    values = rng.normal(size=(2 + index, 3, 4))
    return {
        "features": values.astype(ml_dtypes.bfloat16),
        "pooled": values.mean(1).astype(np.float16),
        "frames": np.arange(2 + index),
    }


def write(directory, manifest, split="train", name="teacher", numbers=None) -> CompanionWriter:
    writer = CompanionWriter(directory, name, manifest, split)
    for number in writer.missing() if numbers is None else numbers:
        with writer.shard(number) as shard:
            for index in writer.records(number):
                shard.append(features(index))
    return writer


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array)
        for name, array in expected.items()
    )


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "shards")


@pytest.fixture
def companion(tmp_path, dataset):
    write(tmp_path / "features", dataset).finish()
    return tmp_path / "features"


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int64", "uint8", "bool", ml_dtypes.bfloat16, ">f4"]
)
@pytest.mark.parametrize("shape", [(4, 5, 6), (0, 3), (), (7,)])
def test_arrays_round_trip(dtype, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    found = decode(encode({"x": array}))["x"]
    assert found.shape == shape and found.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(found, array)


def test_arrays_that_are_no_plain_memory_are_stored_as_they_look():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (base.T, base[::2, 1::2], base[:, ::-1], np.broadcast_to(base[:1], (3, 6))):
        assert np.array_equal(decode(encode({"x": view}))["x"], view)
    assert encode({"x": base, "y": base.T}) == encode({"y": base.T.copy(), "x": base.copy()})


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({}, "no arrays given"),
        ({"x": [1.0, 2.0]}, "array 'x' is list, expected a numpy array"),
        ({"x": np.array(["a"])}, "array 'x' is <U1"),
        ({"x": np.array([None])}, "array 'x' is object"),
        ({"x": np.zeros(2, "M8[s]")}, "array 'x' is datetime64"),
    ],
)
def test_what_is_no_array_is_refused(arrays, complaint):
    with pytest.raises(ValueError, match=complaint):
        encode(arrays)


def test_every_record_has_its_arrays(companion, dataset):
    found = open_companion(companion, dataset, "train")
    assert len(found) == 5 and found.name == "teacher"
    assert all(same(found[i], features(i)) for i in range(5))
    assert [f["frames"].size for f in found] == [2, 3, 4, 5, 6]
    with pytest.raises(IndexError):
        found[5]
    assert repr(found).startswith("Companion('teacher', RecordSource(2 shards, 5 records")


def test_shards_are_those_of_the_split(companion, dataset):
    names = sorted(name for name in os.listdir(companion) if name.endswith(".tfrecord"))
    key = dataset.fingerprint("train")[:12]
    assert names == [f"teacher-train-{key}-0000{k}-of-00002.tfrecord" for k in range(2)]


def test_several_splits_share_a_directory(tmp_path, companion, dataset):
    before = open_companion(companion, dataset, "train").source
    write(companion, dataset, "test").finish()
    assert len(open_companion(companion, dataset, "test")) == 2
    assert repr(open_companion(companion, dataset, "train").source) == repr(before)


def test_interrupted_run_goes_on_where_it_stopped(tmp_path, dataset):
    first = write(tmp_path / "f", dataset, numbers=[1])
    assert first.missing() == [0]
    with pytest.raises(CompanionError, match=r"1 of 2 shards of split 'train' are missing.*00000"):
        first.finish()
    with pytest.raises(FileNotFoundError, match=r"finish\(\) was not reached"):
        open_companion(tmp_path / "f", dataset, "train")
    with pytest.raises(KeyboardInterrupt), first.shard(0) as shard:
        shard.append(features(0))
        raise KeyboardInterrupt
    stamp = os.stat(first.path(1)).st_mtime_ns
    second = write(tmp_path / "f", dataset)
    assert os.stat(first.path(1)).st_mtime_ns == stamp and second.missing() == []
    second.finish()
    content = {p.name: p.read_bytes() for p in (tmp_path / "f").iterdir()}
    write(tmp_path / "whole", dataset).finish()
    assert content == {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}


def test_damaged_shard_is_written_again(tmp_path, dataset):
    writer = write(tmp_path / "f", dataset)
    os.truncate(writer.path(0), 50)
    Path(writer.path(1) + ".idx").unlink()
    assert writer.missing() == [0, 1]


@pytest.mark.parametrize(("count", "complaint"), [(2, "2 records were appended"), (4, "one more")])
def test_wrong_number_of_records_is_refused(tmp_path, dataset, count, complaint):
    writer = CompanionWriter(tmp_path / "f", "teacher", dataset, "train")
    with pytest.raises(ValueError, match=complaint), writer.shard(0) as shard:
        for i in range(count):
            shard.append(features(i))
    assert os.listdir(tmp_path / "f") == []


def test_companion_of_other_records_is_refused(tmp_path, companion):
    other = make_dataset(tmp_path / "other", counts=(2, 3))
    with pytest.raises(CompanionError) as caught:
        open_companion(companion, other, "train")
    message = str(caught.value)
    assert "was made for other records than split 'train'" in message
    assert other.fingerprint("train") in message and "compute it again" in message
    with pytest.raises(CompanionError, match="has nothing for split 'test', only for train"):
        open_companion(companion, other, "test")
    with pytest.raises(ValueError, match="no split 'tset'"):
        open_companion(companion, other, "tset")


def test_directories_that_do_not_fit(tmp_path, companion, dataset):
    with pytest.raises(ValueError, match="is a dataset; give the companion a directory"):
        CompanionWriter(dataset.directory, "teacher", dataset, "train")
    with pytest.raises(ValueError, match="cannot be part of a file name"):
        CompanionWriter(tmp_path / "x", "a/b", dataset, "train")
    with pytest.raises(CompanionError, match="holds the companion 'teacher', not 'student'"):
        write(companion, dataset, name="student").finish()
    with pytest.raises(FileNotFoundError, match="no such directory"):
        open_companion(tmp_path / "nowhere", dataset, "train")


def test_damaged_record_is_named_and_alone(companion, dataset):
    found = open_companion(companion, dataset, "train")
    shard = Path(found.source.shards[0])
    data = bytearray(shard.read_bytes())
    data[offset_of(shard, 1) + 200] ^= 1
    shard.write_bytes(data)
    found = open_companion(companion, dataset, "train")
    with pytest.raises(CorruptRecordError, match=f"{shard.name}: record 1 at byte"):
        found[1]
    assert same(found[0], features(0)) and same(found[2], features(2))


def test_missing_truncated_and_swapped_shards_are_found_at_once(companion, dataset):
    first, second = (Path(s) for s in open_companion(companion, dataset, "train").source.shards)
    data = first.read_bytes()
    os.truncate(first, offset_of(first, 2))  # at a record boundary
    with pytest.raises(ValueError, match="truncated, or of another"):
        open_companion(companion, dataset, "train")
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match="truncated, or of another"):
        open_companion(companion, dataset, "train")
    first.unlink()
    with pytest.raises(FileNotFoundError, match="the shard is missing"):
        open_companion(companion, dataset, "train")
    first.write_bytes(data)
    assert len(open_companion(companion, dataset, "train")) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("name"),
        lambda c: c.update(name=3),
        lambda c: c.update(splits=[]),
        lambda c: c["splits"]["train"].pop("fingerprint"),
        lambda c: c["splits"]["train"].update(fingerprint=1),
        lambda c: c["splits"]["train"].update(shards=7),
        lambda c: c["splits"]["train"]["shards"].pop(),
        lambda c: c["splits"]["train"]["shards"][0].update(name="../x"),
        lambda c: c["splits"]["train"]["shards"][0].update(records="3"),
        lambda c: c["splits"]["train"]["shards"].reverse(),
        lambda c: c.update(version=2),
    ],
)
def test_damaged_manifest_is_refused(companion, dataset, change):
    path = companion / "companion.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CompanionError):
        open_companion(companion, dataset, "train")


def test_manifest_that_is_no_json_is_refused(companion, dataset):
    for data in (b"", b"\xff", b"[" * 100_000, b"3"):
        (companion / "companion.json").write_bytes(data)
        with pytest.raises(CompanionError):
            open_companion(companion, dataset, "train")


def test_record_that_is_no_arrays_is_named(tmp_path, dataset):
    writer = write(tmp_path / "f", dataset, numbers=[1])
    with ShardWriter(writer.path(0)) as shard:
        for data in (b"", b"plain text", struct.pack("<Q", 2**40)):
            shard.append(data)
    writer.finish()
    found = open_companion(tmp_path / "f", dataset, "train")
    for i in range(3):
        with pytest.raises(CorruptRecordError, match=f"record {i} at byte .* not a record of"):
            found[i]


def test_threads_and_pickles_read_the_same(companion, dataset):
    found = pickle.loads(pickle.dumps(open_companion(companion, dataset, "train")))
    wanted = [i % 5 for i in range(100)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(
            same(arrays, features(i))
            for i, arrays in zip(wanted, pool.map(found.__getitem__, wanted), strict=True)
        )


VALID = encode(features(0))


@given(damaged(VALID, most=5))
def test_fuzz_records(data):
    try:
        found = decode(data)
    except CompanionError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


@given(st.binary(max_size=100))
def test_fuzz_arbitrary_bytes(data):
    try:
        decode(data)
    except CompanionError:
        return
