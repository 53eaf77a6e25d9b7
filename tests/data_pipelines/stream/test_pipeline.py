"""The stream is a pure function of its settings and the position; nothing else shows in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.config import AugmentConfig, ClipConfig, DataConfig, ReaderConfig, ViewConfig
from data_pipelines.records.dataset import UnreadableRecordError
from data_pipelines.records.reader import read_index
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from tests.data_pipelines.stream.batches import take

CLIP = ClipConfig(frames=4, stride=2, resolution=32)


def config(shards: Path, **changes) -> DataConfig:
    reader = ReaderConfig(threads=2, buffer=2)
    return dataclasses.replace(
        DataConfig(train=str(shards), global_batch=8, clip=CLIP, reader=reader), **changes
    )


def same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all((x[k] == y[k]).all() for k in x)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def reference(shards):
    """Twenty steps of 8 out of 60 records: more than two epochs."""
    return take(TrainStream(config(shards)), 20)


def test_batches_have_the_documented_shape(reference):
    batch = reference[3]
    assert batch["video"].shape == (8, 4, 32, 32, 3) and batch["video"].dtype == np.uint8
    assert batch["label"].dtype == np.int32 and (batch["label"] < 10).all()
    assert batch["position"].tolist() == list(range(24, 32))
    assert set(batch) == {"video", "label", "index", "position"}


@pytest.mark.parametrize(
    "reader",
    [
        ReaderConfig(threads=1, buffer=1),
        ReaderConfig(threads=16, buffer=8),
        ReaderConfig(threads=2, workers=1),
        ReaderConfig(threads=1, workers=3),
    ],
    ids=["one-thread", "many-threads", "one-worker", "three-workers"],
)
def test_threads_and_workers_do_not_show(shards, reference, reader):
    assert same(take(TrainStream(config(shards, reader=reader)), 20), reference)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_hosts_together_see_the_same_batches(shards, reference, processes):
    parts = [
        take(TrainStream(config(shards), process=i, processes=processes), 12)
        for i in range(processes)
    ]
    for step, expected in enumerate(reference[:12]):
        for key in expected:
            rows = np.concatenate([part[step][key] for part in parts])
            assert (rows == expected[key]).all(), (step, key)


@pytest.mark.parametrize("start", [1, 7, 13])
def test_a_stream_can_start_anywhere(shards, reference, start):
    stream = TrainStream(config(shards), start_step=start)
    assert same(take(stream, 20 - start), reference[start:])


def test_a_restart_may_change_hosts_threads_and_workers_at_once(shards, reference):
    reader = ReaderConfig(threads=3, workers=2)
    parts = [
        take(TrainStream(config(shards, reader=reader), process=i, processes=2, start_step=9), 5)
        for i in range(2)
    ]
    for step in range(5):
        for i, part in enumerate(parts):
            rows = slice(4 * i, 4 * i + 4)
            assert (part[step]["video"] == reference[9 + step]["video"][rows]).all()


def test_every_epoch_visits_every_record_once_in_another_order(shards):
    batches = take(TrainStream(config(shards, global_batch=20)), 6)
    index = np.concatenate([batch["index"] for batch in batches])
    first, second = index[:60], index[60:]
    assert sorted(first) == sorted(second) == list(range(60))
    assert (first != second).any()


def test_the_same_record_is_cropped_anew_in_the_next_epoch(shards):
    batches = take(TrainStream(config(shards, global_batch=60)), 2)
    order = [np.argsort(batch["index"]) for batch in batches]
    a, b = (batch["video"][rows] for batch, rows in zip(batches, order, strict=True))
    assert (a != b).any(axis=(1, 2, 3, 4)).mean() > 0.9


def test_what_belongs_to_the_fingerprint(shards):
    base = TrainStream(config(shards))
    for change in (
        {"seed": 1},
        {"global_batch": 16},
        {"clip": dataclasses.replace(CLIP, stride=1)},
        {"crop": "center"},
        {"split": "test"},
        {"augment": AugmentConfig(rand_augment="rand-m7-n4")},
    ):
        assert TrainStream(config(shards, **change)).fingerprint != base.fingerprint, change
    reader = ReaderConfig(threads=5, workers=2, on_corrupt="substitute")
    assert TrainStream(config(shards, reader=reader)).fingerprint == base.fingerprint
    assert "augment" not in base.identity  # or checkpoints from before it would be refused
    base.close()


def test_augmentation_follows_the_position(shards, reference):
    settings = AugmentConfig(rand_augment="rand-m7-n4-p1", jitter=(0.4, 0.4, 0.4, 0.1))
    augmented = config(shards, augment=settings)
    batches = take(TrainStream(augmented), 4)
    assert (batches[0]["index"] == reference[0]["index"]).all()
    assert (batches[0]["video"] != reference[0]["video"]).any()
    workers = dataclasses.replace(augmented, reader=ReaderConfig(threads=1, workers=1))
    assert same(take(TrainStream(workers, start_step=2), 2), batches[2:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ""}, "no data directory given"),
        ({"train": "/nowhere"}, "no such directory"),
        ({"split": "tset"}, "no split 'tset'; found .*did you mean 'test'"),
        ({"crop": "centre"}, "unknown config.data.crop 'centre'; known: multiscale"),
        ({"flip": "on"}, "labels of 'world' change under a flip"),
        ({"flip": "yes"}, "unknown config.data.flip"),
        ({"clip": dataclasses.replace(CLIP, sampling="tsn")}, "unknown clip sampling 'tsn'"),
        ({"clip": dataclasses.replace(CLIP, stride=0)}, "must be positive"),
        ({"reader": ReaderConfig(on_corrupt="skip")}, "unknown reader.on_corrupt 'skip'"),
        ({"reader": ReaderConfig(threads=-1)}, "threads >= 0"),
    ],
)
def test_wrong_settings(shards, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        TrainStream(config(shards, **changes))


def test_a_batch_that_hosts_cannot_share(shards):
    with pytest.raises(ValueError, match="8 cannot be split evenly over 3 processes"):
        TrainStream(config(shards), processes=3)


def test_flip_follows_the_dataset(shards):
    assert TrainStream(config(shards, flip="auto")).transform.flip is False


@pytest.fixture
def damaged(shards, tmp_path) -> Path:
    """The same shards with a flipped byte in the context of records 5 and 17 of the training split.

    Clips that do not use a frame do not notice its damage, so none of those.
    """
    import shutil

    copy = tmp_path / "damaged"
    shutil.copytree(shards, copy)
    (shard,) = copy.glob("*-train-*.tfrecord")
    entries = read_index(str(shard)).entries
    data = bytearray(shard.read_bytes())
    for record in (5, 17):
        data[int(entries[record]["offset"]) + 100] ^= 0x10
    shard.write_bytes(data)
    return copy


def test_a_damaged_record_stops_the_stream_with_its_address(damaged):
    stream = TrainStream(config(damaged))
    with pytest.raises(
        UnreadableRecordError, match=r"train-00000-of-00001.*record (5|17) .*checksum"
    ):
        take(stream, 8)


def test_substitutes_are_the_next_readable_records_and_are_counted(damaged, reference):
    reader = ReaderConfig(threads=2, on_corrupt="substitute")
    stream = TrainStream(config(damaged, reader=reader))
    batches = take(stream, 15)  # two epochs
    assert stream.substitutions == 4
    for batch, expected in zip(batches, reference, strict=False):
        bad = np.isin(expected["index"], (5, 17))
        assert (batch["index"][bad] == expected["index"][bad] + 1).all()
        assert (batch["video"][~bad] == expected["video"][~bad]).all()


def test_too_many_substitutes_stop_the_stream(damaged):
    reader = ReaderConfig(threads=1, on_corrupt="substitute", max_substitutions=1)
    with pytest.raises(
        RuntimeError, match="2 unreadable records were substituted.*ivj data verify"
    ):
        take(TrainStream(config(damaged, reader=reader)), 8)


def views(**changes) -> ViewConfig:
    clip = dataclasses.replace(CLIP, sampling="dense")
    return dataclasses.replace(
        ViewConfig(clip=clip, batch=8, reader=ReaderConfig(threads=2)), **changes
    )


@pytest.mark.parametrize(("clips", "crops"), [(1, 1), (2, 3)])
def test_a_pass_shows_every_view_of_every_record_once(shards, clips, crops):
    batches = take(ViewPass(str(shards), "test", views(clips=clips, crops=crops)), 100)
    assert len(batches) == 3  # 20 records, 8 a step
    valid = np.concatenate([batch["valid"] for batch in batches])
    pairs = np.concatenate(
        [np.stack([batch["index"], batch["view"]], axis=1) for batch in batches]
    )[valid]
    count = clips * crops
    assert len(valid) == 24 * count
    assert sorted(map(tuple, pairs)) == [(i, v) for i in range(20) for v in range(count)]


def test_a_pass_over_several_hosts_is_the_same_pass(shards):
    whole = take(ViewPass(str(shards), "test", views()), 100)
    parts = [
        take(ViewPass(str(shards), "test", views(), process=i, processes=2), 100) for i in range(2)
    ]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for step, expected in enumerate(whole):
        for i in range(2):
            assert (parts[i][step]["video"] == expected["video"][i::2]).all()
            assert (parts[i][step]["valid"] == expected["valid"][i::2]).all()


def test_a_damaged_record_is_counted_not_scored(damaged):
    reader = ReaderConfig(threads=1, on_corrupt="substitute")
    stream = ViewPass(str(damaged), "train", views(reader=reader))
    batches = take(stream, 100)
    valid = np.concatenate([batch["valid"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])[valid]
    assert stream.skipped == 2 and sorted({*range(60)} - {*index.tolist()}) == [5, 17]
