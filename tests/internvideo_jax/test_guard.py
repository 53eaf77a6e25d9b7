"""No broken state becomes the newest checkpoint, and the last sound one is named and stays."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from internvideo_jax import train
from internvideo_jax.checkpoint.reading import step_of
from internvideo_jax.config import CheckpointConfig
from tests.data_pipelines.sets import write_set
from tests.faults.stepping import config, stepping


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "set", 12)


@pytest.fixture
def start(shards, tmp_path, monkeypatch):
    """Runs or goes on; every step is logged unless said otherwise."""

    def run(steps=8, every=1, skipped=(), set_to=None, **changes):
        monkeypatch.setattr(train, "make_train_step", stepping(skipped, set_to))
        return train.train(config(shards, every=every, steps=steps, **changes), tmp_path / "x")

    return run


def saved(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "x/checkpoints").iterdir())


def largest(tmp_path) -> float:
    return max(float(abs(value).max()) for value in step_of(tmp_path / "x").parameters().values())


@pytest.mark.parametrize("value", [1e30, np.inf, np.nan, -1e25])
def test_parameters_that_cannot_be_right_are_not_saved(start, tmp_path, value):
    with pytest.raises(RuntimeError, match="the update of step 5 made values that are not fi") as e:
        start(set_to={5: value}, max_nonfinite=3)
    assert re.search(r"and \d+ more arrays; it was not saved.*last sound step is step 4 in", str(e))
    assert saved(tmp_path) == ["2", "3", "4"]
    assert start(max_nonfinite=3) == 0  # the advice followed: a sane rate
    assert saved(tmp_path) == ["6", "7", "8"]


@pytest.mark.parametrize(("keep", "left"), [(1, ["4"]), (2, ["3", "4"]), (3, ["2", "3", "4"])])
def test_a_step_without_a_sound_one_after_it_is_set_aside(start, tmp_path, keep, left, capsys):
    """1e12 has a finite square: only the steps after it show that the update broke something."""
    kept = {"checkpoint": CheckpointConfig(every=1, keep=keep, asynchronous=False)}
    with pytest.raises(RuntimeError, match="4 steps had a loss or gradient that is not") as error:
        start(set_to={5: 1e12}, max_nonfinite=3, steps=20, **kept)
    assert "No step from the checkpoint of step 5 was sound: it is now" in str(error.value)
    assert "the last sound step is step 4 in" in str(error.value)
    said = capsys.readouterr()
    assert said.err.count("warning: step 6 is not saved, the next one that is not skipped") == 1
    assert saved(tmp_path) == [*left, "5.unsound"][-max(keep, 2) :]
    assert start(max_nonfinite=3, steps=20, **kept) == 0
    assert "continuing at step 4" in capsys.readouterr().out
    assert largest(tmp_path) < 1e3


def test_without_a_sound_step_the_run_starts_anew(start, tmp_path):
    with pytest.raises(RuntimeError, match="There is no sound step in .*, the same command starts"):
        start(skipped=range(1, 20), max_nonfinite=3)
    assert saved(tmp_path) == []
    assert start() == 0


def test_a_single_bad_batch_only_moves_the_save_on(start, tmp_path, capsys):
    """Steps 4 and 5 are skipped; the save of 4 is made after 6, that of 8 as ever."""
    assert start(skipped=(4, 5), every=4, steps=9, max_nonfinite=3) == 0
    assert saved(tmp_path) == ["6", "8", "9"]
    assert "2 of steps" not in capsys.readouterr().err  # each is told at its log point
    assert int(step_of(tmp_path / "x").meta["step"]) == 9


def test_a_last_step_that_was_skipped_is_no_end(start, tmp_path):
    with pytest.raises(RuntimeError, match="step 8, the last one, had a loss") as error:
        start(skipped=(8,), every=3, max_nonfinite=3)
    assert "the last sound step is step 6 in" in str(error.value)
    assert saved(tmp_path) == ["3", "6"]
    assert start(skipped=(8,), every=3, steps=9, max_nonfinite=3) == 0


def test_skipped_steps_of_an_earlier_start_do_not_end_this_one(start, tmp_path):
    """The counter is part of the state; the limit is for one start."""
    assert start(skipped=(2, 4, 6), max_nonfinite=3, steps=7) == 0
    assert start(skipped=(8, 9), max_nonfinite=3, steps=11) == 0
    rows = [json.loads(line) for line in (tmp_path / "x/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/nonfinite"] == 5  # as an uninterrupted run counts


def test_a_start_from_which_no_step_is_sound_keeps_its_checkpoint(start, tmp_path):
    """The settings or the data of this start may be to blame, not the state."""
    assert start(steps=4, every=2) == 0
    with pytest.raises(RuntimeError, match="No step was sound since step 4, where this start bega"):
        start(steps=20, every=2, skipped=range(5, 20), max_nonfinite=3)
    assert saved(tmp_path) == ["2", "4"]
    assert start(steps=6, every=2) == 0


def test_a_healthy_run_saves_when_it_always_did(start, tmp_path):
    assert start(steps=10, every=4) == 0
    assert saved(tmp_path) == ["10", "4", "8"]


def test_one_that_keeps_a_single_checkpoint_has_the_proven_one_beside_it(start, tmp_path):
    kept = CheckpointConfig(every=1, keep=1)
    assert start(steps=5, checkpoint=kept) == 0
    assert saved(tmp_path) == ["4", "5"]
    with pytest.raises(ValueError, match=r"config.checkpoint.keep = 0: expected 1 or more"):
        start(steps=6, checkpoint=dataclasses.replace(kept, keep=0))
