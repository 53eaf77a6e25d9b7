"""A run that goes on with other settings: what is listed, what is refused, what is remembered."""

from __future__ import annotations

import dataclasses
import json

import pytest

from internvideo_jax import train
from internvideo_jax.checkpoint import settings
from internvideo_jax.config import CheckpointConfig, MeshConfig, OptimConfig, TrainConfig, as_plain
from internvideo_jax.evaluators.knn import NearestNeighbours
from internvideo_jax.families.clip.teacher import CLIPTeacherConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.run import loop
from tests.data_pipelines.sets import write_set
from tests.faults.stepping import config, stepping

CONFIG = TrainConfig(
    model=PretrainConfig.of_size("tiny", decoder_depth=1),
    objective=MaskedPixels(),
    optim=OptimConfig(lr=1e-3),
    steps=6,
)


def stored(found: TrainConfig) -> dict:
    """As a checkpoint has it."""
    return json.loads(json.dumps(as_plain(found)))


def change(**fields) -> TrainConfig:
    """CONFIG with fields by path: optim__lr=1."""
    found = CONFIG
    for path, value in fields.items():
        first, _, rest = path.partition("__")
        inner = dataclasses.replace(getattr(found, first), **{rest: value}) if rest else value
        found = dataclasses.replace(found, **{first: inner})
    return found


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, ""),
        ({"optim__lr": 0.05, "steps": 8}, "optim.lr 0.001 -> 0.05, steps 6 -> 8"),
        ({"optim__weight_decay": 0.5}, "optim.weight_decay 0.05 -> 0.5"),
        ({"optim__accumulate": 2}, "optim.accumulate 1 -> 2"),
        ({"optim__freeze": ("decoder",)}, "optim.freeze [] -> ['decoder']"),
        ({"steps": 0, "epochs": 2.5}, "epochs 0.0 -> 2.5, steps 6 -> 0"),
        ({"mesh": MeshConfig(fsdp=4)}, "mesh.fsdp 1 -> 4"),
        ({"checkpoint": CheckpointConfig(every=5)}, "checkpoint.every 1000 -> 5"),
        ({"model__remat": "full"}, "model.remat none -> full"),
        ({"model__attention": "xla"}, "model.attention auto -> xla"),
        ({"evals": {"knn": NearestNeighbours()}}, "evals.knn absent -> knn"),
        ({"max_nonfinite": 3}, "max_nonfinite 10 -> 3"),
        ({"init_from": "runs/a"}, "init_from '' -> runs/a (of no effect now)"),
    ],
)
def test_how_a_run_goes_on_may_change_and_is_listed(fields, text, tmp_path):
    found = settings.changes(stored(CONFIG), change(**fields))
    settings.check(found, tmp_path / "checkpoints/6")
    assert settings.text(found) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seed": 7}, "seed 0 -> 7: masks, drop path"),
        ({"model__dtype": "float32"}, "model.dtype bfloat16 -> float32: the parameters"),
        ({"model__pos_table": "learnable"}, "model.pos_table sincos -> learnable"),
        (
            {"objective__mask_ratio": 0.5},
            "objective.mask_ratio 0.9 -> 0.5: the parameters were taught",
        ),
        ({"objective__normalized": False}, "objective.normalized True -> False"),
        ({"objective": Alignment()}, "objective masked_pixels -> alignment"),
        ({"optim__lr": 1.0, "seed": 1}, "seed 0 -> 1"),
    ],
)
def test_what_a_state_is_may_not_change(fields, text, tmp_path):
    found = settings.changes(stored(CONFIG), change(**fields))
    with pytest.raises(ValueError, match="6 was made with other settings:\n  ") as error:
        settings.check(found, tmp_path / "checkpoints/6")
    assert f"\n  {text}" in str(error.value) and "optim" not in str(error.value)
    assert f"--config.init_from={tmp_path}/checkpoints/6" in str(error.value)


def test_weights_of_a_teacher_may_lie_elsewhere_or_be_cached(tmp_path):
    """What they are is compared by their digest."""
    teacher = CLIPTeacherConfig.of_size("tiny", init_from="a.pth")
    before = change(objective=Alignment(clip_teacher=teacher))
    for now in (dataclasses.replace(teacher, init_from="b.pth"), None):
        found = settings.changes(stored(before), change(objective=Alignment(clip_teacher=now)))
        assert len(found) == 1
        settings.check(found, tmp_path)
    other = dataclasses.replace(teacher, layers=(0,))
    with pytest.raises(ValueError, match="objective.clip_teacher.layers"):
        found = settings.changes(stored(before), change(objective=Alignment(clip_teacher=other)))
        settings.check(found, tmp_path)


def test_fields_that_an_older_checkpoint_lacks_count_as_their_defaults():
    older = stored(CONFIG)
    del older["watchdog"], older["optim"]["ema_decay"], older["model"]["remat"]
    del older["data"]["reader"], older["model"]["decoder"]["depth"], older["head_rows"]
    older["optim"]["of_then"] = 3  # and a field that is no more
    found = settings.changes(older, change(optim__ema_decay=0.9))
    assert found.pop("model.decoder.depth", None) is not None  # has no default
    assert found == {"optim.ema_decay": (0.0, 0.9), "optim.of_then": (3, "absent")}


def test_a_run_that_goes_on_keeps_what_it_was(tmp_path, monkeypatch, capsys):
    shards, workdir = write_set(tmp_path / "set", 12), tmp_path / "x"
    monkeypatch.setattr(loop, "make_train_step", stepping())

    def run(steps, **changes):
        assert train.train(config(shards, every=9, steps=steps, **changes), workdir) == 0
        record = json.loads((workdir / "run.json").read_text())
        return record["history"], capsys.readouterr().out

    assert run(1)[0] == []
    history, said = run(1)
    assert history == [] and "differs" not in said
    history, said = run(2, optim=OptimConfig(ema_decay=0.9, lr=0.5))
    assert "differs from the checkpoint: optim.lr 0.00015 -> 0.5, steps 1 -> 2\n" in said
    first = {"until": 1, "settings": {"optim.lr": 0.00015, "steps": 1}}
    assert history == [first]
    history, _ = run(3)
    assert history == [first, {"until": 2, "settings": {"optim.lr": 0.5, "steps": 2}}]
    metrics = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="seed 0 -> 7"):
        run(4, seed=7)
    assert (workdir / "metrics.jsonl").read_bytes() == metrics
