"""Kill -9 at random steps, start again: the run ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_PRETRAIN, environment, once

STEPS = 75
SETTINGS = (
    "--config=configs/videomae/pretrain.py:size=tiny",
    *TINY_PRETRAIN,
    f"--config.steps={STEPS}",
    "--config.optim.warmup_steps=10",
    "--config.optim.ema_decay=0.9",
    "--config.checkpoint.every=15",
    "--config.log.every=5",
    "--config.log.report=False",
    "--config.evals.reconstruction.every=25",
    "--config.evals.reconstruction.views.batch=8",
)


def words(shards: Path, workdir: Path) -> tuple[str, ...]:
    data = f"--config.data.train={shards}"
    return ("internvideo_jax.train", *SETTINGS, f"--workdir={workdir}", data)


def start(shards: Path, workdir: Path, devices: int) -> subprocess.Popen:
    """A process of its own, which can be killed. Its output goes to a file: a full pipe would stop
    it."""
    with open(workdir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *words(shards, workdir)],
            cwd=ROOT,
            env=environment(devices),
            stdout=log,
            stderr=log,
        )


def last_step(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.fixture(scope="session")
def finish(command, shards) -> Callable[..., str]:
    """Runs the training in a folder to its end, without interruption; what it says."""

    def run(workdir: Path, devices: int = 1) -> str:
        done = command(*words(shards, workdir), devices=devices)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def uninterrupted(finish, tmp_path_factory) -> Callable[[int], Path]:
    def run(devices: int) -> Path:
        made = once(
            tmp_path_factory, f"whole-{devices}", lambda folder: finish(folder / "run", devices)
        )
        return made / "run"

    return run


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_runs_end_like_an_uninterrupted_one(
    shards, uninterrupted, finish, tmp_path, devices
):
    whole, killed = uninterrupted(devices), tmp_path / "killed"
    rng = random.Random(devices)
    kills = 0
    for low, high in ((1, 14), (20, 40), (45, 65)):  # once before the first checkpoint
        target = rng.randint(low, high)
        process = start(shards, killed, devices)
        while process.poll() is None and last_step(killed) < target:
            time.sleep(0.01)
        if process.poll() is None:
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3, "the runs ended before they could be killed; make STEPS larger"
    said = finish(killed, devices)

    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    digests = [
        json.loads((run / "run.json").read_text())["params_digest"] for run in (whole, killed)
    ]
    assert digests[0] == digests[1]
    assert "continuing at step" in said


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_polite_signal_saves_the_step_it_is_at(shards, finish, tmp_path, number):
    workdir = tmp_path / "run"
    process = start(shards, workdir, 1)
    while process.poll() is None and last_step(workdir) < 20:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=120) == 128 + number
    saved = max(int(step.name) for step in (workdir / "checkpoints").iterdir())
    assert saved >= 20
    log = workdir.with_suffix(".log").read_text()
    assert f"{signal.Signals(number).name}: saved step {saved}" in log
    assert f"continuing at step {saved}" in finish(workdir)


def test_a_save_that_was_cut_short_is_ignored(uninterrupted, finish, tmp_path):
    """What a kill during a save leaves: a directory under the name of an unfinished step."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted(1), workdir)
    steps = workdir / "checkpoints"
    torn = steps / f"{STEPS + 15}.orbax-checkpoint-tmp"
    os.rename(steps / str(STEPS), torn)
    assert "continuing at step 60" in finish(workdir)
    assert not torn.exists()
