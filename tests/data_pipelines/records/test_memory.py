"""Settings that ask for terabytes are refused with the numbers, before anything is allocated."""

from __future__ import annotations

import dataclasses

import pytest

from data_pipelines.config import (
    AugmentConfig,
    ClipConfig,
    DataConfig,
    ReaderConfig,
    SetConfig,
    ViewConfig,
)
from data_pipelines.records import memory
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from tests.data_pipelines.sets import write_set

CLIP = ClipConfig(frames=2, stride=2, resolution=24)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    return str(write_set(tmp_path_factory.mktemp("sets") / "a", 8, classes=("run", "sit")))


@pytest.fixture(autouse=True)
def a_gibibyte(monkeypatch):
    monkeypatch.setattr(memory, "installed", lambda: 2**30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"clip": ClipConfig(frames=10**12, resolution=24)},
            r"4 clips of 10{12} frames of 24x24 .* TiB",
        ),
        (
            {"clip": ClipConfig(frames=2, resolution=10**6)},
            r"10{6}x10{6} pixels .* this machine has 1",
        ),
        ({"global_batch": 10**9}, "a batch of 10{9} clips"),
        (
            {"global_batch": 8, "repeats": 4, "clip": ClipConfig(resolution=10**6)},
            "a batch of 8 clips",
        ),
        ({"reader": ReaderConfig(buffer=10**9)}, "buffer = 10{9} and reader.workers = 0 keep up"),
        ({"reader": ReaderConfig(workers=1000, buffer=10**6)}, "reader.workers = 1000 keep up to"),
        ({"reader": ReaderConfig(threads=10**9)}, "reader.threads = 10{9}: expected at most 1024"),
        ({"reader": ReaderConfig(workers=10**18)}, "reader.workers = 10{18}: expected at most"),
        ({"global_batch": 2**20, "audio_seconds": 3599.0}, "a batch of 1048576 clips"),
        (
            {"crop": "random", "augment": AugmentConfig(short_side=(24, 10**9))},
            r"short_side = \(24, 10{9}\): expected at most 16384 pixels",
        ),
    ],
)
def test_a_stream_that_no_machine_holds(small, changes, message):
    config = DataConfig(train=small, global_batch=4, clip=CLIP)
    with pytest.raises(ValueError, match=message):
        TrainStream(dataclasses.replace(config, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 10**9}, "a batch of 10{9} clips .*views.clip.frames"),
        ({"clips": 10**9}, "a batch of 8000000000 clips"),
        ({"crops": 10**9}, "a batch of 8000000000 clips"),
        ({"clip": ClipConfig(resolution=10**6, sampling="dense")}, "10{6}x10{6} pixels"),
        ({"reader": ReaderConfig(buffer=10**9)}, "keep up to 1000000002 batches of"),
    ],
)
def test_an_evaluation_pass_that_no_machine_holds(small, changes, message):
    config = ViewConfig(clip=dataclasses.replace(CLIP, sampling="dense"))
    with pytest.raises(ValueError, match=message):
        ViewPass(small, "train", dataclasses.replace(config, **changes))


def test_what_fits_is_not_refused(small, monkeypatch):
    reader = ReaderConfig(threads=1, buffer=2)
    config = DataConfig(train=small, global_batch=4, clip=CLIP, reader=reader)
    batch = 4 * 2 * 24 * 24 * 3
    monkeypatch.setattr(memory, "installed", lambda: batch)
    stream = TrainStream(config)
    assert next(stream)["video"].nbytes == batch
    stream.close()
    monkeypatch.setattr(memory, "installed", lambda: batch - 1)
    with pytest.raises(ValueError, match=r"needs 13.5 KiB of memory in each process, this machine"):
        TrainStream(config)
    monkeypatch.setattr(memory, "installed", lambda: 0)  # a system that does not tell
    TrainStream(config).close()


def test_the_memory_of_this_machine(monkeypatch):
    monkeypatch.undo()
    assert memory.installed() > 2**28


def test_a_batch_without_pixels_does_not_speak_of_frames(small):
    sets = {"a": SetConfig(small, media="features")}
    config = DataConfig(mixture=sets, text="first", text_length=2**20, tokenizer="clip")
    with pytest.raises(ValueError) as failure:
        TrainStream(dataclasses.replace(config, global_batch=2**10))
    assert "a batch of 1024 examples of 4 MiB needs 4 GiB of memory" in str(failure.value)
    assert "frames" not in str(failure.value)
