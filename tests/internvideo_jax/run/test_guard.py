"""No broken state becomes the newest checkpoint, and the last sound one is named and stays."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection

import numpy as np
import pytest

from data_pipelines.commands.lock import DirectoryLock
from internvideo_jax import train
from internvideo_jax.checkpoint.reading import step_of
from internvideo_jax.checkpoint.run_folder import LOCK
from internvideo_jax.config import CheckpointConfig
from internvideo_jax.run import loop as training
from internvideo_jax.run.guard import COUNTER, Guard
from tests.data_pipelines.sets import write_set
from tests.faults.stepping import config, stepping


class Disk:
    """Checkpoints as numbers."""

    def __init__(self, steps: Collection[int] = ()):
        self.steps, self.aside = list(steps), []

    def save(self, step, state, meta):
        del state, meta
        self.steps.append(step)

    def set_aside(self, step):
        self.steps.remove(step)
        self.aside.append(step)
        return f"{step}.unsound"

    def sound_text(self, without=0):
        return f"the last sound step is {max([s for s in self.steps if s != without], default=0)}"


def loop(steps: int, skipped: Collection[int], disk: Disk, *, every=1, limit=3, start=0, before=0):
    """Goes through the steps as train.py does; the warnings."""
    said: list[str] = []
    guard = Guard(disk, limit, start, before, said.append)  # pyright: ignore[reportArgumentType]
    count = before
    for step in range(start + 1, steps + 1):
        count += step in skipped
        guard.stepped({COUNTER: np.int32(count)})
        guard.check(step)
        if step % every == 0 or step == steps or guard.owes:
            guard.save(step, None, {}, last=step == steps)  # pyright: ignore[reportArgumentType]
    return said


def test_a_healthy_run_saves_when_it_always_did():
    disk = Disk()
    assert loop(10, (), disk, every=4) == []
    assert disk.steps == [4, 8, 10]


def test_a_step_without_a_sound_one_after_it_is_set_aside():
    """Something was wrong with the update of step 5: steps from 6 on are skipped."""
    disk = Disk()
    with pytest.raises(RuntimeError, match="4 steps had a loss or gradient that is not") as error:
        loop(20, range(6, 21), disk)
    assert "No step from the checkpoint of step 5 was sound: it is now 5.unsound; the last" in (
        str(error.value)
    )
    assert str(error.value).endswith("the last sound step is 4")
    assert disk.steps == [1, 2, 3, 4] and disk.aside == [5]


def test_a_checkpoint_with_a_sound_step_after_it_stays():
    disk = Disk()
    with pytest.raises(RuntimeError, match="The last sound step is 4$"):
        loop(20, range(6, 21), disk, every=4)
    assert disk.steps == [4] and not disk.aside


def test_without_a_checkpoint_nothing_is_set_aside():
    disk = Disk()
    with pytest.raises(RuntimeError, match="The last sound step is 0$"):
        loop(20, range(1, 21), disk, every=4)
    assert not disk.steps and not disk.aside


def test_a_single_bad_batch_only_moves_the_save_on():
    disk = Disk()
    said = loop(9, (4, 5), disk, every=4)
    assert disk.steps == [6, 8, 9]  # 6 for 4, and 8 as ever
    assert [line for line in said if "not saved" in line] == [
        "warning: step 4 is not saved, the next sound one will be"
    ]


def test_a_last_step_that_was_skipped_is_no_end():
    disk = Disk()
    with pytest.raises(RuntimeError, match="step 8, the last one, had a loss .* config.steps one"):
        loop(8, (8,), disk, every=3)
    assert disk.steps == [3, 6] and not disk.aside
    loop(9, (8,), disk, every=3, start=6)
    assert disk.steps == [3, 6, 9]


def test_skipped_steps_of_an_earlier_start_do_not_end_this_one():
    """The counter is part of the state; the limit is for one start."""
    disk = Disk([7])
    loop(12, (8, 9, 10), disk, start=7, before=3)
    with pytest.raises(RuntimeError, match="4 steps had"):
        loop(16, (13, 14, 15, 16), disk, start=12, before=6)


def test_a_start_from_which_no_step_is_sound_keeps_its_checkpoint():
    """The settings or the data of this start may be to blame, not the state."""
    disk = Disk([2, 4])
    with pytest.raises(RuntimeError, match="No step was sound since step 4, where this start") as e:
        loop(20, range(5, 20), disk, start=4)
    assert str(e.value).endswith("remove or move that step: then the last sound step is 2")
    assert disk.steps == [2, 4]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "set", 12)


@pytest.fixture
def start(shards, tmp_path, monkeypatch):
    """The training loop, but for the train step; every step is saved."""

    def run(steps, set_to=None, *, keep=3, asynchronous=False):
        monkeypatch.setattr(training, "make_train_step", stepping((), set_to))
        saving = CheckpointConfig(every=1, keep=keep, asynchronous=asynchronous)
        settings = config(shards, every=1, steps=steps, checkpoint=saving, max_nonfinite=1)
        return train.train(settings, tmp_path / "x")

    return run


def saved(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "x/checkpoints").iterdir())


def test_parameters_that_cannot_be_right_are_not_saved(start, tmp_path):
    with pytest.raises(RuntimeError, match="the update of step 3 made values that are not fi") as e:
        start(5, {3: 1e30})
    assert "more arrays; it was not saved." in str(e.value)
    assert "the last sound step is step 2 in" in str(e.value)
    assert saved(tmp_path) == ["1", "2"]


def test_after_an_update_that_broke_all_a_sane_rate_goes_on(start, tmp_path, capsys):
    """1e12 has a finite square: only the steps after it show that the update broke something."""
    with pytest.raises(RuntimeError, match=r"now .*/3.unsound; the last sound step is step 2 in"):
        start(6, {3: 1e12}, keep=1, asynchronous=True)
    assert saved(tmp_path) == ["2", "3.unsound"]
    assert start(4, keep=1, asynchronous=True) == 0  # the advice followed
    assert "continuing at step 2 from" in capsys.readouterr().out
    assert saved(tmp_path) == ["3", "3.unsound", "4"]
    assert max(abs(value).max() for value in step_of(tmp_path / "x").parameters().values()) < 1e3
    rows = [json.loads(line) for line in (tmp_path / "x/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_a_second_run_in_a_workdir_touches_nothing_of_the_first(start, tmp_path):
    """Neither its rows nor a save in progress."""
    left = tmp_path / "x/checkpoints/7.orbax-checkpoint-tmp/file"
    left.parent.mkdir(parents=True)
    left.write_text("being written")
    (tmp_path / "x/metrics.jsonl").write_text('{"step": 6}\n')
    with DirectoryLock(str(tmp_path / "x"), LOCK):
        with pytest.raises(ValueError) as error:
            start(2)
        found = str(error.value)
    assert found.startswith(f"{tmp_path}/x is in use by process {os.getpid()} on ")
    assert re.search(r" since \d{4}-\d\d-\d\dT\S+; wait for it, stop it, or give another", found)
    assert left.exists() and (tmp_path / "x/metrics.jsonl").read_text() == '{"step": 6}\n'
    assert not (tmp_path / "x/run.json").exists()
    assert start(1) == 0  # released: the same workdir may go on
