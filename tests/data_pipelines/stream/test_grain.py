"""The pieces of the stream are pieces of Grain: sources, a dataset, an iterator with a state."""

from __future__ import annotations

import asyncio
import collections
from fractions import Fraction

import cv2
import grain
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig, ViewConfig
from data_pipelines.records.dataset import open_dataset
from data_pipelines.stream.assemble import TrainBatches
from data_pipelines.stream.mixture import Interleave
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from tests.data_pipelines.sets import write_set

CLIP = ClipConfig(frames=2, stride=2, resolution=24)
READER = ReaderConfig(threads=2, buffer=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return str(write_set(tmp_path_factory.mktemp("sets") / "a", 13, classes=("run", "sit")))


def settings(shards: str) -> DataConfig:
    return DataConfig(train=shards, global_batch=4, clip=CLIP, seed=3, reader=READER)


def middle(record):
    jpeg = np.frombuffer(record.frames[len(record.frames) // 2], np.uint8)
    return {"image": cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB), "label": record.labels[0]}


def test_a_strangers_pipeline_reads_our_shards_and_resumes(shards):
    """Only Grain and the source: no stream, no settings."""
    source = open_dataset(shards, "train")
    assert isinstance(source, grain.sources.RandomAccessDataSource)
    assert isinstance(source.source, grain.sources.RandomAccessDataSource)
    shuffled = grain.MapDataset.source(source).seed(0).shuffle().repeat()
    batches = shuffled.map(middle).batch(4)
    running = iter(batches.to_iter_dataset())
    first = [next(running) for _ in range(5)]
    assert first[0]["image"].shape == (4, 40, 48, 3)
    assert {int(label) for batch in first for label in batch["label"]} == {0, 1}
    resumed = iter(batches.to_iter_dataset())
    resumed.set_state({"next_index": 3})
    for batch in first[3:]:
        assert (next(resumed)["image"] == batch["image"]).all()


def test_the_stream_is_a_dataset_with_the_orders_as_parents(shards):
    batches = TrainBatches(settings(shards))
    assert isinstance(batches, grain.MapDataset)
    assert list(batches.parents) == [source.order for source in batches.sources]
    stream = TrainStream(settings(shards))
    assert isinstance(stream, grain.DatasetIterator)
    for step in range(4):
        expected, batch = next(stream), batches[step]
        assert (batch.pop("substituted"), batch.keys()) == (0, expected.keys())
        assert all(np.array_equal(batch[name], expected[name]) for name in batch)
    stream.close()
    batches.pool.close()


def test_a_transform_behind_the_stream_resumes_at_its_step(shards):
    batches = TrainBatches(settings(shards))
    bright = batches.map(lambda batch: batch["video"].mean((1, 2, 3, 4)))
    running = iter(bright.to_iter_dataset(grain.ReadOptions(2, 2)))
    running.set_state({"next_index": 1000})
    assert np.array_equal(next(running), bright[1000])
    assert running.get_state() == {"next_index": 1001}
    running.close()
    batches.pool.close()


def test_the_state_is_the_step_whatever_reads(shards):
    config = settings(shards)
    one = TrainStream(config, start_step=5)
    assert one.get_state() == {"next_index": 5}
    expected = [next(one) for _ in range(3)]
    assert one.get_state() == {"next_index": 8}
    one.set_state({"next_index": 6})
    assert np.array_equal(next(one)["video"], expected[1]["video"])
    hosts = [TrainStream(config, process=host, processes=2) for host in range(2)]
    for host in hosts:
        host.set_state({"next_index": 7})
    videos = [next(host)["video"] for host in hosts]
    assert np.array_equal(np.concatenate(videos), expected[2]["video"])
    for stream in (one, *hosts):
        stream.close()
        with pytest.raises(ValueError, match="closed iterator"):
            next(stream)


def test_orbax_can_save_the_iterator(shards, tmp_path):
    """What Orbax calls of an iterator of Grain (its StatefulCheckpointable)."""

    class Created:
        path = tmp_path

        async def await_creation(self):
            return tmp_path

    async def saved_and_loaded(one, other):
        await (await one.save(Created()))
        await (await other.load(tmp_path))

    one, other = TrainStream(settings(shards), start_step=9), TrainStream(settings(shards))
    asyncio.run(saved_and_loaded(one, other))
    assert other.get_state() == {"next_index": 9}
    one.close(), other.close()


def test_an_evaluation_is_a_dataset_too(shards):
    views = ViewConfig(ClipConfig(2, 2, 24, "dense"), clips=2, batch=4, reader=READER)
    stream = ViewPass(shards, "train", views)
    assert len(stream.batches) == len(stream) == 4
    again = stream.batches[3]
    last = list(stream)[3]
    assert np.array_equal(again["video"], last["video"]) and last["valid"].sum() == 2
    stream.close()


def test_why_mixing_is_ours():
    """Shares of 0.7 and 0.3 in Grain are 233 to 100; the docs say so."""
    parts = [grain.MapDataset.source([part]).repeat() for part in range(2)]
    mixed = grain.MapDataset.mix(parts, weights=[0.7, 0.3])
    counts = collections.Counter(mixed[i] for i in range(10_000))
    assert counts == {0: 6997, 1: 3003}
    ours = Interleave.of([Fraction("0.7"), Fraction("0.3")])
    assert collections.Counter(ours.locate(i)[0] for i in range(10_000)) == {0: 7000, 1: 3000}
