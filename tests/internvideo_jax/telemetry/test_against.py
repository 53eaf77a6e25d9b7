"""A run beside another one or several: where it leaves their band, and what is said of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import operator
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.objectives.classification import Classification
from internvideo_jax.recipes.options import assigned
from internvideo_jax.reference.__main__ import config_of, listing, make_data, settings_of
from internvideo_jax.reference.__main__ import main as reference
from internvideo_jax.reference.table import REFERENCES
from internvideo_jax.telemetry import curves
from internvideo_jax.telemetry.against import verdict
from internvideo_jax.telemetry.report import main as report
from internvideo_jax.train import train

STEPS = np.arange(1, 41)
# Reference -> between what its main metric ends. By chance: five colours; of 32 captions, the mean
# of recall at 1, 5 and 10; the best of all predictions that are one colour. Of students: how much
# features differ, of one that is given the targets of other clips less than this.
LEARNED = {
    "videomae-pretrain": (0.0, 0.0286),
    "videomae-finetune": (0.5, 1.01),
    "viclip-pretrain": (0.4, 1.01),
    "uniformerv2-finetune": (0.5, 1.01),
    "internvideo2-finetune": (0.5, 1.01),
    "umt-pretrain": (0.3, 1.01),
    "internvideo2-distill": (0.4, 1.01),
    "internvideo2-pretrain": (0.3, 1.01),
}


def loss(seed: int, rate: float = 1.0) -> np.ndarray:
    """Falls from 3 to about 1, with the noise of a run."""
    noise = np.random.default_rng(seed).normal(scale=0.03, size=len(STEPS))
    return 1 + 2 * np.exp(-rate * STEPS / 10) + noise


def run(folder: Path, values, *, every: int = 1, lr: float = 1e-3, seed: int = 0, top1=0.5) -> Path:
    """What a training run leaves of its curves."""
    folder.mkdir(parents=True)
    config = {
        "model": {"name": "videomae_pretrain"},
        "objective": {"name": "masked_pixels"},
        "optim": {"lr": lr},
        "data": {"train": str(folder), "seed": seed, "global_batch": 8},
        "log": {"every": every},
        "seed": seed,
    }
    about = {
        "config": config,
        "devices": {"count": 1, "kind": "cpu"},
        "data": {"seed": seed, "split": "train"},
        "versions": {"jax": "0.10.2"},
    }
    (folder / "run.json").write_text(json.dumps(about))
    rows = [
        {"step": int(step), "train/loss": float(value), "train/grad_norm": 1.0}
        for step, value in zip(STEPS, values, strict=True)
        if step % every == 0
    ]
    rows.append({"step": 40, "eval/test/top1": top1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def stored(tmp_path) -> Path:
    """The file of a reference with five seeds."""
    made = [
        curves.of_run(run(tmp_path / f"seed{i}", loss(i), seed=i, top1=0.5 + 0.01 * i))
        for i in range(5)
    ]
    path = tmp_path / "made.json"
    about = {"seeds": list(range(5)), "metrics": {"eval/test/top1": 0.1}}
    path.write_text(curves.as_json(made, "made", about))
    return path


def test_a_further_seed_is_in_the_band(stored, tmp_path):
    for seed in range(10, 30):
        found = verdict(run(tmp_path / f"run{seed}", loss(seed), seed=seed), str(stored))
        assert not found.parts, found.lines
    head, first, *_, config, data, versions = found.lines
    assert head == "run29 is in the band of made at all 40 steps compared"
    assert first == "train/loss: in the band at all 40 steps compared"
    assert any(line.startswith("eval/test/top1: in the band at all 1") for line in found.lines)
    # Seeds and places are not what a reference with several seeds is about.
    assert config == "config: no other settings" and data == "data: no other stream"
    assert versions == "versions: no others"
    assert len(found.drawings) == 3 and all("<svg" in each for each in found.drawings)


def test_another_rate_parts_and_the_first_step_is_said(stored, tmp_path):
    values = np.where(STEPS < 20, loss(30), loss(30) + 1.0)
    found = verdict(run(tmp_path / "late", values, lr=1e-2), str(stored))
    assert found.parts
    assert found.lines[0] == "late parts from made at step 20, in train/loss"
    assert "leaves the band at step 20 (40 steps compared), where it is" in found.lines[1]
    assert ", above " in found.lines[1] and "at step 40 it is" in found.lines[1]
    assert "  optim.lr: found 0.01, the reference has 0.001" in found.lines


def test_one_or_two_rows_outside_are_not_enough(stored, tmp_path):
    values = loss(31)
    values[[10, 11, 20]] += 5.0
    assert not verdict(run(tmp_path / "spikes", values), str(stored)).parts
    values[12] = np.nan
    found = verdict(run(tmp_path / "nan", values), str(stored))
    assert found.lines[0] == "nan parts from made at step 11, in train/loss"


def test_a_main_metric_that_is_wrong_parts(stored, tmp_path):
    found = verdict(run(tmp_path / "chance", loss(32), top1=0.1), str(stored))
    assert found.lines[0] == "chance parts from made at step 40, in eval/test/top1"
    assert any("below" in line for line in found.lines)


def test_two_runs_of_anybody(tmp_path):
    one = run(tmp_path / "one", loss(1), seed=1)
    same = verdict(run(tmp_path / "same", loss(2), seed=2, every=2), str(one))
    assert not same.parts, same.lines
    assert "at all 20 steps compared" in same.lines[0]
    assert "  seed: found 2, the reference has 1" in same.lines
    other = verdict(run(tmp_path / "other", loss(3, rate=0.2)), str(one))
    assert other.parts and "as it is one run" in "\n".join(other.lines)


def test_the_command_says_it_with_its_exit_code(stored, tmp_path, capsys):
    good = run(tmp_path / "good", loss(40))
    bad = run(tmp_path / "bad", loss(41, rate=0.1))
    out = tmp_path / "page.html"
    assert report([str(good), f"--against={stored}", f"--out={out}"]) == 0
    assert "good is in the band of made" in capsys.readouterr().out
    assert "good is in the band of made" in out.read_text()
    assert report([str(good), str(bad), f"--against={stored}", f"--out={out}"]) == 1
    text = capsys.readouterr().out
    assert "bad parts from made at step" in text and str(out) in text
    assert report([str(good), f"--out={out}"]) == 0


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ("nobody", "--against=nobody: is no run, no file and none of the references"),
        ("folder/broken.json", "is no reference"),
        ("odd", "have no step of train/loss in common"),
        ("begun", "has no train/loss yet"),
    ],
)
def test_what_cannot_be_compared(tmp_path, monkeypatch, capsys, against, said):
    monkeypatch.chdir(tmp_path)
    mine = run(tmp_path / "mine", loss(1), every=20)
    run(tmp_path / "odd", loss(1), every=7)
    begun = run(tmp_path / "begun", loss(1))
    (begun / "metrics.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/broken.json").write_text('{"name": "x"}')
    assert report([str(mine), f"--against={against}", "--out=page.html"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_the_stored_references_are_those_of_the_table():
    assert curves.names() == sorted(REFERENCES)
    assert "no stored curves" not in listing()
    for name, each in REFERENCES.items():
        file = curves.REFERENCES / f"{name}.json"
        assert file.stat().st_size < 40_000
        found = curves.stored(file)
        assert found.about["recipe"] == each.recipe and len(found.seeds) >= 3
        assert found.seeds == each.seeds
        metric = f"eval/{each.evaluator}/{each.metric}"
        assert found.about["metrics"] == {metric: each.margin}
        assert {metric, *curves.TRAINING} == set(found.series)
        assert all(len(series) == len(found.seeds) for series in found.series.values())
        text = json.dumps(found.config, sort_keys=True).encode()
        assert found.about["config_sha256"] == hashlib.sha256(text).hexdigest()
        # What is stored is what would be run now.
        for path, value in settings_of(each).items():
            assert functools.reduce(operator.getitem, path.split("."), found.config) == value, path


@pytest.mark.parametrize("name", REFERENCES)
def test_something_is_learned_in_a_reference(name):
    found, (least, most) = curves.find(name), LEARNED[name]
    for loss in found.series[curves.LOSS]:
        values = [loss[step] for step in sorted(loss)]
        assert np.mean(values[-10:]) < 0.9 * np.mean(values[:5])
    for seed in found.series[f"eval/{REFERENCES[name].evaluator}/{REFERENCES[name].metric}"]:
        assert least < seed[max(seed)] < most


def test_the_command_reference_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    assert reference(["--list"]) == 0
    assert "viclip-pretrain" in capsys.readouterr().out
    for words, said in (
        (["videomae-pretrian"], "did you mean"),
        (["videomae-pretrain"], "no --workdir given"),
        (["videomae-pretrain", f"--workdir={tmp_path}", "--set", "lr"], "expected FIELD=VALUE"),
        (["videomae-pretrain", f"--workdir={tmp_path}", "--seed=1", f"--write={tmp_path}/a.json"],
         "leave --set and --seed out"),
    ):  # fmt: skip
        assert reference(words) == 2
        assert said in "".join(capsys.readouterr())
    monkeypatch.setattr(curves, "REFERENCES", tmp_path)  # as of a new row of the table
    assert "(no stored curves)" in listing()
    assert reference(["videomae-pretrain", f"--workdir={tmp_path}"]) == 2
    assert "make some with --write=FILE" in "".join(capsys.readouterr())
    with pytest.raises(ValueError, match="unknown field config.optim.rate"):
        config_of(REFERENCES["viclip-pretrain"], tmp_path, 0, {"optim.rate": 1.0})
    found = assigned(["optim.lr=1e-2", "data.text=first"], "--set ")
    assert found == {"optim.lr": 0.01, "data.text": "first"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the clips of the references."""
    folder = tmp_path_factory.mktemp("references")
    make_data(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("videomae-finetune", ""),
        ("videomae-finetune", "optim.lr=0.05"),
        ("videomae-pretrain", "objective.mask_ratio=0.3"),
    ],
)
def test_a_further_seed_is_in_the_band_of_a_reference_and_a_fault_is_not(
    folder, name, change, capsys
):
    seed = 11 + len(change)
    words = [name, f"--workdir={folder}", f"--seed={seed}"]
    assert reference([*words, *([f"--set={change}"] if change else [])]) == bool(change)
    said = capsys.readouterr().out
    run = folder / f"{name}-{seed}"
    page = [f"--against={name}", f"--out={folder}/page.html"]
    assert report([str(run), *page]) == bool(change)
    again = capsys.readouterr().out
    parts = rf"{run.name} parts from {name} at step \d+, in train/"
    for text in (said, again):
        assert bool(re.search(parts, text)) == bool(change)
        assert (f"is in the band of {name} at all" in text) != bool(change)
        assert f"  {change.partition('=')[0]}: found" in text or not change


class Shuffled(Classification):
    """Every clip is taken for what another one of its batch is."""

    def loss(self, model, params, batch, *rest):
        wrong = {**batch, "label": jnp.roll(batch["label"], 1)}
        return super().loss(model, params, wrong, *rest)


@pytest.mark.slow
def test_a_run_with_shuffled_labels_leaves_the_band_of_its_reference(folder, tmp_path):
    config = config_of(REFERENCES["videomae-finetune"], folder / "shards", 12)
    config = dataclasses.replace(config, objective=Shuffled(**vars(config.objective)))
    assert train(config, tmp_path / "run") == 0
    found = verdict(tmp_path / "run", "videomae-finetune")
    at = {each.metric: each.step for each in found.found}
    assert found.parts and 0 < at["train/loss"] < config.steps and at["eval/test/top1"]
