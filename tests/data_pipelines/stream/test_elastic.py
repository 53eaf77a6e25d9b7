"""Any stream, stopped and resumed on other hosts, threads and workers, is the same stream."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
import pytest

from data_pipelines.clips import augment, sampling
from data_pipelines.config import (
    AugmentConfig,
    ClipConfig,
    DataConfig,
    ImageConfig,
    ReaderConfig,
    ViewConfig,
)
from data_pipelines.records.dataset import open_dataset
from data_pipelines.stream import identity
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from tests.data_pipelines.sets import write_set

CLIP = ClipConfig(frames=2, stride=2, resolution=24)
KINDS = ("plain", "mixture", "media", "repeats", "everything")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "a", 13, classes=("run", "sit"), captions=[("one", "two"), ()])
    write_set(root / "b", 7, classes=("run", "sit"), captions=[("three", "four", "five")])
    write_set(root / "p", 9, frames=1)
    return root


def config(sets, kind: str, **changes) -> DataConfig:
    videos = f"a={sets}/a:0.7, b={sets}/b:0.3; flip=on"
    pictures = f"{videos}, p={sets}/p:0.5; media=image; crop=random_resized"
    image = ImageConfig(global_batch=16, resolution=16)
    fields = {
        "plain": {"train": f"{sets}/a"},
        "mixture": {"mixture": videos},
        "media": {"mixture": pictures, "image": image},
        "repeats": {"train": f"{sets}/a", "repeats": 2},
        "everything": {"mixture": pictures, "image": image, "repeats": 2, "text": "random"},
    }[kind]
    reader = ReaderConfig(threads=2, buffer=2)
    base = DataConfig(global_batch=8, clip=CLIP, seed=3, reader=reader, **fields)
    return dataclasses.replace(base, **changes)


def digests(batch: dict[str, np.ndarray]) -> list[tuple]:
    """One entry per example: everything it has, the pixels as a hash."""
    names = sorted(set(batch) - {"video"})
    return [
        (hashlib.sha256(video.tobytes()).hexdigest(), *(str(batch[name][i]) for name in names))
        for i, video in enumerate(batch["video"])
    ]


def steps_on(settings: DataConfig, hosts: int, start: int, steps: int) -> list[list[tuple]]:
    """Per step the examples of all hosts, one host's after the other's."""
    streams = [
        TrainStream(settings, process=i, processes=hosts, start_step=start) for i in range(hosts)
    ]
    joined = [
        list(itertools.chain.from_iterable(digests(next(stream)) for stream in streams))
        for _ in range(steps)
    ]
    for stream in streams:
        stream.close()
    return joined


def resumed(settings: DataConfig, parts: Sequence[tuple[int, int, ReaderConfig]]):
    """The stream put together from (hosts, steps, reader)."""
    found = []
    for hosts, steps, reader in parts:
        changed = dataclasses.replace(settings, reader=reader)
        found += steps_on(changed, hosts, len(found), steps)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_hosts_and_threads_change_in_the_middle_of_an_epoch(sets, kind):
    settings = config(sets, kind)
    expected = steps_on(settings, 1, 0, 12)
    parts = [
        (1, 2, ReaderConfig(threads=1, buffer=1)),
        (2, 3, ReaderConfig(threads=5, buffer=3)),
        (4, 4, ReaderConfig(threads=1, buffer=2)),
        (1, 3, ReaderConfig(threads=3, buffer=1)),
    ]
    assert resumed(settings, parts) == expected
    positions = [int(example[-1]) for step in expected for example in step]
    assert positions == list(range(len(positions)))  # in order on any number of hosts
    assert len({example[0] for step in expected for example in step}) > 40


@pytest.mark.slow
def test_workers_change_too(sets):
    settings = config(sets, "everything")
    parts = [
        (1, 3, ReaderConfig(threads=2, buffer=1, workers=2)),
        (2, 3, ReaderConfig(threads=1, buffer=2, workers=1)),
        (1, 3, ReaderConfig(threads=1, buffer=1)),
    ]
    assert resumed(settings, parts) == steps_on(settings, 1, 0, 9)


def test_the_stream_is_what_its_definition_says(sets):
    """Written out once more: grain's order, one Philox stream per position."""
    settings = config(sets, "plain")
    dataset = open_dataset(settings.train, "train")
    order = grain.MapDataset.range(13).seed(3).shuffle().repeat(None)
    transform = augment.TrainTransform(resolution=24, crop="multiscale", flip=False)
    stream = TrainStream(settings, start_step=2)
    batch = next(stream)
    stream.close()
    for row, position in enumerate(range(16, 24)):
        index = int(order[position])
        rng = np.random.Generator(np.random.Philox(key=[3, position]))
        record = dataset.load(index)
        wanted = sampling.TRAIN["window"](8, 2, 2, rng)
        pixels = transform(dataset.frames(index, record, wanted), rng)
        assert batch["index"][row] == index and (batch["video"][row] == pixels).all()
        assert batch["label"][row] == index % 2 and batch["position"][row] == position


# ------------------------------------------------------------------------------------- repeats


def test_repeats_share_the_frames_and_nothing_else(sets):
    """As the reference: [record 0 crop 0, record 0 crop 1, ..., record 1 crop 0, ...]."""
    whole = config(sets, "repeats", repeats=4, crop="center", flip="off", global_batch=52)
    stream = TrainStream(whole)
    batch = next(stream)
    stream.close()
    assert sorted(batch["index"]) == sorted(list(range(13)) * 4)
    assert (batch["index"].reshape(13, 4) == batch["index"][::4, None]).all()
    clips = batch["video"].reshape(13, 4, -1)
    assert (clips == clips[:, :1]).all()  # the same frames ...

    stream = TrainStream(dataclasses.replace(whole, crop="random_resized"))
    batch = next(stream)
    stream.close()
    clips = batch["video"].reshape(13, 4, -1)
    assert len({clip.tobytes() for clip in clips.reshape(52, -1)}) == 52  # ... under other crops
    assert batch["position"].tolist() == list(range(52))


def test_a_record_is_decoded_once_for_all_its_repeats(sets, monkeypatch):
    from data_pipelines.records.dataset import Dataset

    loads, decodes = [], []
    load, frames = Dataset.load, Dataset.frames
    monkeypatch.setattr(Dataset, "load", lambda s, i: (loads.append((s, i)), load(s, i))[1])
    monkeypatch.setattr(
        Dataset, "frames", lambda s, i, *rest: (decodes.append((s, i)), frames(s, i, *rest))[1]
    )
    stream = TrainStream(config(sets, "repeats", repeats=4, reader=ReaderConfig(2, 1)))
    index = {int(i) for _ in range(3) for i in next(stream)["index"]}
    stream.close()
    # Streams that were closed before may still be busy with their last record.
    own = stream.sources[0].dataset
    loaded = [i for dataset, i in loads if dataset is own]
    decoded = [i for dataset, i in decodes if dataset is own]
    # 8 examples are two records; no more than the buffer and two batches in the making are ahead.
    assert len(index) == 6 and len(loaded) <= 12
    assert len(set(loaded)) == len(loaded) and len(set(decoded)) == len(decoded)
    assert index <= set(decoded) <= set(loaded)


def test_repeats_stay_on_one_host(sets):
    with pytest.raises(ValueError, match="global_batch = 8 cannot .* 4 processes x 4 repeats"):
        TrainStream(config(sets, "repeats", repeats=4), processes=4)
    with pytest.raises(ValueError, match="8 examples per step .* multiple of .*repeats = 3"):
        TrainStream(config(sets, "repeats", repeats=3))
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        TrainStream(config(sets, "repeats", repeats=0))
    image = ImageConfig(global_batch=6)
    with pytest.raises(ValueError, match="image.global_batch = 6 cannot .* 4 processes"):
        TrainStream(config(sets, "media", image=image), processes=4)


# ------------------------------------------------------------------------------------ identity


def test_everything_that_changes_the_stream_changes_its_identity(sets, tmp_path):
    def identity_of(settings):
        stream = TrainStream(settings)
        stream.close()
        return json.loads(json.dumps(stream.identity))

    base = config(sets, "everything")
    stored = identity_of(base)
    other = write_set(tmp_path / "b", 8, classes=("run", "sit"))
    mixture = base.mixture
    a, b, p = mixture.split(",")
    changes = {
        "mixture.a.share": {"mixture": mixture.replace("0.7", "0.6")},
        "mixture.b.records": {"mixture": mixture.replace(f"{sets}/b", str(other))},
        "mixture.b.flip": {"mixture": mixture.replace("flip=on", "flip=off")},
        "mixture.b.dataset": {"mixture": ",".join([b, a, p])},
        "media.image.steps": {"mixture": mixture.replace("0.5", "0.25")},
        "media.image.size": {"image": ImageConfig(16, 24)},
        "media.image.batch": {"image": ImageConfig(8, 16)},
        "repeats": {"repeats": 4},
        "text.choice": {"text": "first"},
        "merge_classes": {"merge_classes": "offset"},
        "clip.stride": {"clip": dataclasses.replace(CLIP, stride=1)},
        "seed": {"seed": 4},
    }
    for field, change in changes.items():
        found = identity_of(dataclasses.replace(base, **change))
        lines = identity.differences(found, stored)
        assert any(line.startswith(f"{field}: found ") for line in lines), (field, lines)
        assert identity.digest(found) != identity.digest(stored)
    reader = ReaderConfig(threads=7, buffer=1)
    assert identity.differences(identity_of(dataclasses.replace(base, reader=reader)), stored) == []


def test_what_is_off_is_not_in_the_identity(sets):
    stream = TrainStream(config(sets, "plain"))
    stream.close()
    assert set(stream.identity) == {
        *("records", "split", "seed", "global_batch", "clip", "crop", "flip", "version", "first")
    }


def test_differences_name_the_field_and_both_values():
    found = {"seed": 1, "clip": {"size": 2, "frames": (1,)}, "new": 3}
    stored = {"seed": 1, "clip": {"size": 4, "frames": [1]}, "old": 5}
    assert identity.differences(found, stored) == [
        "clip.size: found 2, the checkpoint has 4",
        "new: found 3, the checkpoint has 'nothing'",
        "old: found 'nothing', the checkpoint has 5",
    ]


# ---------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_record_counts_once_with_more_hosts_than_records(tmp_path, processes):
    """Three records, four rows a step: the fourth host has padding only, as many steps as all."""
    write_set(tmp_path / "few", 3, classes=("run", "sit"))
    views = ViewConfig(
        clip=dataclasses.replace(CLIP, sampling="dense"),
        clips=2,
        batch=4,
        reader=ReaderConfig(threads=2),
    )
    seen, steps = [], []
    for process in range(processes):
        view_pass = ViewPass(
            str(tmp_path / "few"), "train", views, process=process, processes=processes
        )
        batches = list(view_pass)
        view_pass.close()
        steps.append(len(batches))
        for batch in batches:
            rows = zip(batch["index"], batch["view"], batch["valid"], strict=True)
            seen += [(index, view) for index, view, valid in rows if valid]
    assert steps == [1] * processes
    assert sorted(seen) == [(index, view) for index in range(3) for view in range(2)]


@pytest.mark.slow
def test_every_record_counts_once_with_workers(sets):
    processes = 2
    views = ViewConfig(
        clip=dataclasses.replace(CLIP, sampling="dense"),
        batch=8,
        reader=ReaderConfig(threads=1, workers=1),
    )
    valid = []
    for process in range(processes):
        view_pass = ViewPass(f"{sets}/a", "train", views, process=process, processes=processes)
        batches = list(view_pass)
        view_pass.close()
        assert len(batches) == 2
        for batch in batches:
            valid += batch["index"][batch["valid"]].tolist()
    assert sorted(valid) == list(range(13))


# -------------------------------------------------------------------------------------- memory


def test_pixels_are_written_once(sets, monkeypatch):
    """Every crop goes straight into its row of the batch that is delivered."""
    written = []
    call = augment.TrainTransform.__call__

    def spy(self, frames, rng, *, out=None):
        written.append(out)
        return call(self, frames, rng, out=out)

    monkeypatch.setattr(augment.TrainTransform, "__call__", spy)
    stream = TrainStream(config(sets, "repeats"))
    video = next(stream)["video"]
    stream.close()
    own = [row for row in written if np.shares_memory(row, video)]
    assert len(own) == len(video) and video.flags.c_contiguous


def test_no_more_batches_are_made_ahead_than_the_buffer_holds(sets, monkeypatch):
    from data_pipelines.stream import assemble

    made = []
    call = assemble.TrainBatches.__call__
    monkeypatch.setattr(
        assemble.TrainBatches, "__call__", lambda s, step: (made.append(step), call(s, step))[1]
    )
    stream = TrainStream(config(sets, "plain", reader=ReaderConfig(threads=8, buffer=3)))
    for taken in (1, 2, 3):
        next(stream)
        time.sleep(0.2)
        assert len(made) <= taken + 3
    stream.close()
    assert sorted(made) == list(range(len(made))) and len(made) >= 4


def test_a_program_that_forgets_to_close_ends(sets):
    code = f"""
from data_pipelines.config import ClipConfig, DataConfig
from data_pipelines.stream.pipeline import TrainStream
clip = ClipConfig(frames=2, stride=2, resolution=24)
stream = TrainStream(DataConfig(train="{sets}/a", global_batch=8, clip=clip))
print(next(stream)["video"].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.strip() == "(8, 2, 24, 24, 3)", done.stderr


def test_an_option_of_the_transform_belongs_to_the_identity_when_it_is_on(sets):
    identities = []
    for changed in (AugmentConfig(), AugmentConfig(jitter=(0.4, 0.0, 0.0, 0.0))):
        stream = TrainStream(dataclasses.replace(config(sets, "plain"), augment=changed))
        stream.close()
        identities.append(stream.identity)
    off, on = identities
    assert "augment" not in off
    assert on["augment"]["jitter"] == (0.4, 0.0, 0.0, 0.0)
    assert {**on, "augment": None} == {**off, "augment": None}
