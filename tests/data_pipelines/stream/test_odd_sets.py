"""Sets that are small, short, empty or full of odd texts: what the stream makes of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig, ViewConfig
from data_pipelines.records import manifest
from data_pipelines.stream import identity
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from data_pipelines.text.clip import ClipTokenizer
from tests.data_pipelines.sets import write_set
from tests.data_pipelines.stream.batches import take

CLIP = ClipConfig(frames=4, stride=2, resolution=24)
# Scripts, right to left, joined and combining signs, beyond the basic plane, control signs.
ODD = (
    "日本語の字幕、猫が走る",
    "\u202eعربي\u202c עברית",
    "👩\u200d👩\u200d👧 e\u0301 ﬁ \u00a0\u3000",
    "\U0001f3f4\U000e0067 \ufeff\u200b",
    "quotes \" ' \\ , ; \t and\nlines\r\n",
    "nul \x00 inside",
    "\udcff a byte that is not UTF-8",
    "x" * 20_000,
)


def config(directory: Path, **changes) -> DataConfig:
    reader = ReaderConfig(threads=2, buffer=2)
    base = DataConfig(train=str(directory), global_batch=4, clip=CLIP, reader=reader)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_any_caption_reaches_the_batch_and_the_tokeniser(tmp_path, workers):
    """Unchanged as text; records whose captions say nothing have none."""
    empty = ((), ("",), (" \t\n",))
    write_set(tmp_path / "a", 11, captions=[*((text,) for text in ODD), *empty])
    reader = ReaderConfig(threads=2, buffer=2, workers=workers)
    settings = config(tmp_path / "a", global_batch=11, text="first", reader=reader)
    (batch,) = take(TrainStream(settings), 1)
    order = np.argsort(batch["index"])
    assert batch["caption"][order][:8].tolist() == list(ODD)
    assert batch["has_text"][order].tolist() == [True] * 8 + [False] * 3

    tokenize = ClipTokenizer(16)
    (batch,) = take(TrainStream(settings, tokenize=tokenize), 1)
    order = np.argsort(batch["index"])
    ids = batch["text"][order]
    assert ids.shape == (11, 16) and ids.dtype == np.int32 and (ids < tokenize.vocab_size).all()
    for row, text in zip(ids, ODD, strict=False):
        assert row.tolist() == tokenize([text])[0].tolist()
    assert (ids[8:] == tokenize([""])[0]).all()
    assert len({row.tobytes() for row in ids[:8]}) >= 7  # they are not all the same to it


@pytest.mark.parametrize("frames", [1, 4])
def test_clips_shorter_than_the_window_repeat_their_last_frame(tmp_path, frames):
    """A window of 8 frames, 4 of them shown; a record has 1 or 4."""
    write_set(tmp_path / "a", 4, frames=frames)
    settings = config(tmp_path / "a", crop="center", flip="off")
    (batch,) = take(TrainStream(settings), 1)
    assert batch["video"].shape == (4, 4, 24, 24, 3)
    shown = [[frame.tobytes() for frame in clip] for clip in batch["video"]]
    assert all(len(set(clip)) == min(frames, 2) for clip in shown)  # frames 0, 2, 2, 2
    assert all(len(set(clip[1:])) == 1 for clip in shown)
    clip = dataclasses.replace(CLIP, sampling="dense")
    views = ViewConfig(clip=clip, clips=2, batch=4, reader=ReaderConfig(threads=1))
    (batch,) = take(ViewPass(str(tmp_path / "a"), "train", views), 9)
    assert batch["video"].shape == (8, 4, 24, 24, 3) and batch["valid"].all()


@pytest.mark.parametrize("hosts", [2, 8])
def test_training_on_fewer_records_than_hosts(tmp_path, hosts):
    """Epochs go on over the ends of batches: every host has its rows, no record is left out."""
    write_set(tmp_path / "a", 3, classes=("run", "sit"))
    settings = config(tmp_path / "a", global_batch=8)
    whole = take(TrainStream(settings), 6)
    parts = [take(TrainStream(settings, process=i, processes=hosts), 6) for i in range(hosts)]
    for step, expected in enumerate(whole):
        for name in expected:
            rows = np.concatenate([part[step][name] for part in parts])
            assert (rows == expected[name]).all()
    index = np.concatenate([batch["index"] for batch in whole])
    assert all(sorted(epoch) == [0, 1, 2] for epoch in index.reshape(16, 3))


def test_a_split_without_records_is_refused(tmp_path):
    write_set(tmp_path / "a", 0, classes=("run", "sit"))
    views = ViewConfig(clip=dataclasses.replace(CLIP, sampling="dense"), batch=4)
    for make in (
        lambda: TrainStream(config(tmp_path / "a")),
        lambda: ViewPass(str(tmp_path / "a"), "train", views),
        lambda: TrainStream(config("", train="", mixture=f"a={tmp_path}/a")),
    ):
        with pytest.raises(ValueError, match=r"split 'train' .*(no|0) records"):
            make()


def test_a_class_list_that_changed_is_another_stream(tmp_path):
    """The records are the same, what their labels mean is not."""
    write_set(tmp_path / "a", 4, classes=("run", "sit"))
    stored = TrainStream(config(tmp_path / "a"))
    path = tmp_path / "a" / manifest.FILE_NAME
    content = json.loads(path.read_text())
    content["classes"].reverse()
    path.write_text(json.dumps(content))
    found = TrainStream(config(tmp_path / "a"))
    [line] = identity.differences(found.identity, stored.identity)
    assert line.startswith("records: found ") and found.fingerprint != stored.fingerprint


def test_an_evaluation_batch_that_hosts_cannot_share(tmp_path):
    write_set(tmp_path / "a", 4)
    views = ViewConfig(clip=dataclasses.replace(CLIP, sampling="dense"), batch=4)
    with pytest.raises(ValueError, match="batch of 4 videos cannot be split evenly over 3"):
        ViewPass(str(tmp_path / "a"), "train", views, processes=3)
