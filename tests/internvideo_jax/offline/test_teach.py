"""Cached targets: the loss of teachers in the step, restart, damaged records, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig
from data_pipelines.records import manifest
from data_pipelines.records.companion import CompanionWriter, open_companion
from data_pipelines.records.dataset import UnreadableRecordError
from data_pipelines.stream.pipeline import TrainStream
from data_pipelines.stream.views import FixedViews
from internvideo_jax.config import MeshConfig, OptimConfig, TrainConfig
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.offline.teach import TeacherJob, Teaching, prepare, teach
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step
from internvideo_jax.run.target_cache import check_targets
from tests.data_pipelines.sets import write_set
from tests.internvideo_jax.objectives.aligned import CLIP, MAE, Student

RECORDS = 6
TOYS = Alignment(clip_teacher=CLIP, mae_teacher=MAE, mask_ratio=0.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("teach") / "set", RECORDS)


def config(shards: Path, objective: Alignment = TOYS, model=None, **data) -> TrainConfig:
    model = model or Student()
    clip = ClipConfig(frames=model.clip_frames, stride=1, resolution=model.resolution)
    data = {
        "train": str(shards),
        "global_batch": 4,
        "clip": clip,
        "fixed_views": 1,
        "flip": "on",
        **data,
    }
    return TrainConfig(
        model=model,
        objective=objective,
        data=DataConfig(reader=ReaderConfig(threads=2, buffer=2), **data),
        optim=OptimConfig(lr=1e-2, lr_batch=0, warmup_steps=1),
        mesh=MeshConfig(data=1),
        steps=10,
    )


def cached(settings: TrainConfig, out: Path, **changes) -> TrainConfig:
    """The same run without teachers."""
    objective = dataclasses.replace(settings.objective, clip_teacher=None, mae_teacher=None)
    data = dataclasses.replace(settings.data, features=str(out))
    return dataclasses.replace(settings, objective=objective, data=data, **changes)


class Made:
    """The toy teachers and their targets in float32, two views."""

    def __init__(self, shards: Path, out: Path):
        self.settings, self.out = config(shards, fixed_views=2), out
        self.tool, self.provenance = prepare(self.settings, Teaching(dtype="float32", batch=4))
        assert teach(self.tool, out, self.provenance) == 1
        self.found = read(shards, out)


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory) -> Made:
    return Made(shards, tmp_path_factory.mktemp("made"))


def with_options(tool: TeacherJob, **options) -> TeacherJob:
    """The same teachers, loaded once."""
    return dataclasses.replace(tool, options=dataclasses.replace(tool.options, **options))


def read(shards: Path, out: Path) -> list[dict[str, np.ndarray]]:
    return list(open_companion(out, manifest.load(str(shards)), "train"))


def losses(settings: TrainConfig, networks=None, *others: Path) -> np.ndarray:
    """(steps, 4): total, middle, final and mae of every step.

    With `others` (1 + others, steps, 4): also those of the run on their features.
    """
    run = build(settings, devices=jax.devices()[:1])
    frozen = {name: params for name, (_, params) in (networks or {}).items()}
    initial, step = init_state(run), make_train_step(run, frozen)
    found = []
    for place in (settings.data.features, *map(str, others)):
        state = jax.tree.map(jnp.copy, initial)
        stream = TrainStream(dataclasses.replace(settings.data, features=place))
        rows = []
        for _ in range(run.steps):
            state, metrics = step(state, next(stream))
            rows.append([metrics[f"train/{name}"] for name in ("loss", "middle", "final", "mae")])
        stream.close()
        found.append(np.array(jax.device_get(rows), np.float64))
    return np.stack(found) if others else found[0]


def test_cached_targets_give_the_losses_of_teachers_in_the_step(made, shards, tmp_path):
    """Ten steps of 4 clips are more than six passes over two views."""
    expected = losses(made.settings, made.tool.networks)
    # The control: the same features, those of the two views exchanged.
    writer = CompanionWriter(tmp_path / "wrong", "targets", manifest.load(str(shards)), "train")
    with writer.shard(0) as shard:
        for record in made.found:
            shard.append({name: array[::-1] for name, array in record.items()})
    writer.finish()
    found, wrong = losses(cached(made.settings, made.out), None, tmp_path / "wrong")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.median(np.abs(wrong / expected - 1)[:, 0]) > 0.02

    teach(with_options(made.tool, dtype="bfloat16"), tmp_path, made.provenance)
    found = losses(cached(made.settings, tmp_path))
    assert (found != expected).any()
    # 8 bits of each value; what is rounded moves the weights too, over ten steps.
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_what_is_stored_and_that_it_is_kept(shards, made, capsys):
    record, tokens = made.found[3], Alignment.visible(made.settings.objective, made.settings.model)
    shapes = {
        "visible": (2, tokens),
        "clip_middle": (2, 2, 1 + tokens, 32),
        "clip_final": (2, 8),
        "mae": (2, 1, tokens, 16),
    }
    assert len(made.found) == RECORDS
    assert {name: array.shape for name, array in record.items()} == shapes
    assert {name: array.dtype.name for name, array in record.items()} == {
        **dict.fromkeys(shapes, "float32"),
        "visible": "int32",
    }
    assert not np.array_equal(record["visible"][0], record["visible"][1])
    stored = json.loads((made.out / "targets-train.json").read_text())
    assert stored["teachers"]["clip_teacher"]["config"]["name"] == "toy_clip"
    assert stored["settings"]["config.objective"]["mask_ratio"] == 0.5

    before = {path.name: path.read_bytes() for path in made.out.iterdir()}
    assert teach(made.tool, made.out, made.provenance) == 0
    assert {path.name: path.read_bytes() for path in made.out.iterdir()} == before
    source = open_companion(made.out, manifest.load(str(shards)), "train").source
    size, said = len(source[3]), capsys.readouterr().out
    assert f"{size / 1024:.1f} KiB per record of 2 views" in said
    assert f"{size * RECORDS / 1024:.1f} KiB for all {RECORDS} records, 0 B left to this" in said
    assert f"clip_middle 2x{1 + tokens}x32 float32" in said

    for name, value in (("dtype", "float16"), ("teachers", {}), ("settings", {})):
        with pytest.raises(ValueError, match=f"made with another {name}"):
            teach(made.tool, made.out, {**made.provenance, name: value})


def test_batches_and_unreadable_records(made, tmp_path):
    """Batches of another size over a damaged set: the readable records have the same targets."""
    shards = write_set(tmp_path / "set", RECORDS)
    (shard,) = shards.glob("*.tfrecord")
    data = bytearray(shard.read_bytes())
    place = 2 * len(data) // RECORDS + len(data) // 12  # inside the frames of the third record
    data[place : place + 2000] = bytes(2000)
    shard.write_bytes(data)
    out, views = tmp_path / "features", FixedViews(config(shards, fixed_views=2).data)
    tool = with_options(dataclasses.replace(made.tool, views=views), batch=5)
    with pytest.raises(UnreadableRecordError, match="record 2 at byte"):
        teach(tool, out, made.provenance)
    assert not list(out.glob("*.tfrecord"))
    tool = with_options(tool, skip_unreadable=True)
    assert teach(tool, out, made.provenance) == 1
    assert tool.skipped == 1
    for index, (record, whole) in enumerate(zip(read(shards, out), made.found, strict=True)):
        for name, array in record.items():
            if index == 2:
                assert (
                    array.shape == (0, *whole[name].shape[1:]) and array.dtype == whole[name].dtype
                )
            else:
                np.testing.assert_allclose(array, whole[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_run_with_other_settings_is_refused_with_the_differences(made, tmp_path):
    shutil.copytree(made.out, tmp_path, dirs_exist_ok=True)
    run = cached(made.settings, tmp_path)
    assert check_targets(run) == []
    data, model = run.data, run.model
    sampling = dataclasses.replace(data.clip, stride=2)
    for changes, lines in (
        ({"seed": 1}, ["config.seed: found 1, the features have 0"]),
        (
            {"objective": dataclasses.replace(run.objective, mask_ratio=0.75, mask="tube")},
            ["config.objective.mask: found 'tube'", "config.objective.mask_ratio: found 0.75"],
        ),
        (
            {
                "data": dataclasses.replace(
                    data, fixed_views=1, seed=4, crop="center", clip=sampling
                )
            },
            [
                "config.data.clip.stride: found 2",
                "config.data.crop: found 'center'",
                "config.data.seed: found 4",
                "config.data.fixed_views: found 1, the features have 2",
            ],
        ),
        ({"data": dataclasses.replace(data, fixed_views=0)}, ["config.data.fixed_views: found 0"]),
        ({"model": dataclasses.replace(model, patch=8)}, ["config.model.grid: found [2, 2, 2]"]),
    ):
        with pytest.raises(ValueError) as caught:
            build(dataclasses.replace(run, **changes))
        for line in lines:
            assert line in str(caught.value)
        assert str(caught.value).count(", the features have") == len(lines)
        assert "make them again" in str(caught.value)
    # What does not decide them may change.
    optim = dataclasses.replace(run.optim, lr=1.0)
    assert check_targets(dataclasses.replace(run, optim=optim)) == []

    (tmp_path / "targets-train.json").unlink()
    assert "has no targets-train.json" in build(run).summary
    (tmp_path / "targets-train.json").write_text("[]")
    with pytest.raises(ValueError, match="is not what teach writes"):
        check_targets(run)


def test_recipes_without_targets_are_refused(shards):
    settings = config(shards)
    objective = dataclasses.replace(TOYS, clip_teacher=None, mae_teacher=None)
    cases: list[tuple[TrainConfig, dict[str, Any], str]] = [
        (config(shards, objective), {}, "no teacher in the step"),
        (config(shards, fixed_views=0), {}, "--views is needed"),
        (config(shards, objective, fixed_views=0), {"views": 3}, "no teacher in the step"),
        (dataclasses.replace(settings, objective=MaskedPixels()), {}, "takes no targets"),
        (settings, {"dtype": "int8"}, "--dtype=int8: expected one of float16, bfloat16"),
        (settings, {"batch": 0}, "--batch=0: expected at least 1"),
        (settings, {"views": -1}, "--views=-1"),
        (settings, {"set": "k400"}, "no set 'k400'"),
    ]
    for changed, options, text in cases:
        with pytest.raises(ValueError, match=text):
            prepare(changed, Teaching(**options))


@pytest.mark.slow
def test_the_commands(shards, tmp_path, command):
    """With networks of the published kinds."""
    recipe = Path(__file__).parent / "recipe.py"
    flags = [f"--config.data.train={shards}", "--config.data.fixed_views=1"]
    out = tmp_path / "features"
    with_teachers = [f"--config={recipe}", *flags]
    options = [f"--out={out}", "--dtype=float32", "--batch=4"]
    done = command("internvideo_jax.offline.teach", *with_teachers, *options)
    assert done.returncode == 0, done.stderr
    assert "ETA" in done.stdout and f"complete: {out}" in done.stdout
    rows = {}
    without = [f"--config={recipe}:cached", *flags, f"--config.data.features={out}"]
    for name, arguments in (("step", with_teachers), ("cached", without)):
        done = command("internvideo_jax.train", *arguments, f"--workdir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [json.loads(line)["train/loss"] for line in lines]
    assert len(rows["step"]) == 3
    np.testing.assert_allclose(rows["cached"], rows["step"], rtol=2e-5)
    done = command("internvideo_jax.offline.teach", "--help")
    assert "--dtype" in done.stdout and "Which set of config.data.mixture." in done.stdout
