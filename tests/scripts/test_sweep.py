"""scripts/sweep.py, with a training that only writes what a training leaves."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY_PRETRAIN
from tests.scripts.conftest import ROOT, SCRIPTS, Script, script_environment


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Directory with a package whose train is `fake_train.py`."""
    package = tmp_path / "package/internvideo_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    shutil.copy(Path(__file__).parent / "fake_train.py", package / "train.py")
    (package / "launch").symlink_to(ROOT / "internvideo_jax/launch")
    for name in ("commands.py", "registry.py"):
        (package / name).symlink_to(ROOT / "internvideo_jax" / name)
    return package.parent


def sweep(script: Script, fake: Path, *arguments: str):
    return script("sweep.py", "--config=c.py", "--out=out", *arguments, PYTHONPATH=f"{fake}:{ROOT}")


def test_dry_run_prints_every_run(script: Script, tmp_path: Path):
    done = script(
        "sweep.py",
        "--config=c.py:size=tiny",
        "--out=out",
        "--set=optim.lr=1e-3,3e-4",
        "--set=config.data.train=a dir/",
        '--set=optim.freeze=[["a","b"],[]]',
        "--restarts=1",
        "--dry-run",
    )
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert len(commands) == 4
    assert commands[0] == [
        *("python", "-m", "internvideo_jax.launch", "--restarts=1", "--"),
        *("python", "-m", "internvideo_jax.train", "--config=c.py:size=tiny"),
        "--workdir=out/optim.lr=1e-3,optim.freeze=_a_b_",
        *(
            "--config.data.train=a dir/",
            "--config.optim.lr=1e-3",
            "--config.optim.freeze=('a','b',)",
        ),
    ]
    assert commands[1][-1] == "--config.optim.freeze=()"
    assert not (tmp_path / "out").exists()


def test_runs_all_and_ends_with_a_sorted_table(script: Script, fake: Path, tmp_path: Path):
    arguments = (
        "--set=optim.lr=0.1,0.2",
        "--set=seed=0,1",
        "--parallel=2",
        "--sort=eval/test/top1",
    )
    done = sweep(script, fake, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.reader((tmp_path / "out/table.csv").read_text().splitlines()))
    assert rows == [
        ["optim.lr", "seed", "status", "step", "eval/test/top1"],
        ["0.2", "1", "finished", "2", "1.2"],
        ["0.1", "1", "finished", "2", "1.1"],
        ["0.2", "0", "finished", "2", "0.2"],
        ["0.1", "0", "finished", "2", "0.1"],
    ]
    table = (tmp_path / "out/table.md").read_text()
    assert table.splitlines()[2] == "| 0.2 | 1 | finished | 2 | 1.2 |" and table in done.stdout
    # Again: nothing runs, the table can have another order.
    again = sweep(script, fake, *arguments, "--ascending", "--metrics=train/loss")
    assert "4 runs, 4 of them finished before" in again.stdout
    assert "| 0.1 | 0 | finished | 2 | 0.1 | 1 |" in again.stdout.splitlines()[3]
    starts = [path.read_text() for path in sorted((tmp_path / "out").glob("*/starts"))]
    assert starts == ["start\n"] * 4
    dry = sweep(script, fake, *arguments, "--dry-run")
    assert all(line.startswith("# finished: ") for line in dry.stdout.splitlines())


def test_a_failed_run_stops_no_other(script: Script, fake: Path, tmp_path: Path):
    done = sweep(script, fake, "--set=optim.lr=bad,0.2", "--set=seed=0")
    assert done.returncode == 1
    assert "optim.lr=bad failed:\n  error: the rate is bad" in done.stdout
    assert "| bad | exit code 1 |  |  |" in done.stdout and "| 0.2 | finished | 2 |" in done.stdout


def test_a_stopped_sweep_saves_and_goes_on(fake: Path, script: Script, tmp_path: Path):
    arguments = ["--config=c.py", "--out=out", "--set=optim.lr=slow,0.2", "--set=seed=0"]
    environment = {**script_environment(tmp_path), "PYTHONPATH": f"{fake}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "sweep.py"), *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    run = tmp_path / "out/optim.lr=slow/run.json"
    deadline = time.monotonic() + 30
    while not run.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)  # its signal handler stands
    # While it runs, a second sweep keeps its hands off.
    other = sweep(script, fake, "--set=optim.lr=slow,0.2", "--set=seed=0")
    assert other.returncode == 3 and "an earlier sweep still works in" in other.stderr
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped: optim.lr=slow" in output and "start the same command again" in output
    assert not (tmp_path / "out/optim.lr=0.2").exists()
    again = sweep(script, fake, "--set=optim.lr=slow,0.2", "--set=seed=0")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "| slow | finished | 2 | 0.5 |" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set=seed=0"], "nothing to sweep over; expected --set with several values"),
        (["--set=seed"], "--set seed: expected FIELD=VALUE"),
        (["--set=seed=0,,1"], "expected values with commas between them"),
        (["--set=seed=0,1", "--set=seed=2"], "the field is given twice"),
        (["--set=seed=0,0"], "the sweep has the run seed=0 twice"),
        (["--set=seed=0,1", "--set=optim.lr=1,2,3", "--zip"], "seed has 2, optim.lr has 3"),
        (["--set=seed=[0,1"], "starts with [ but is no JSON list"),
        (["--set=seed=0,1", "--parallel=0"], "--parallel=0: expected at least 1"),
        (["--set=seed=0,1", "--restarts=-1"], "--restarts=-1: expected 0 or more"),
    ],
)
def test_errors_say_what_to_do(script: Script, arguments, message):
    done = script("sweep.py", "--config=c.py", "--out=out", "--dry-run", *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_a_directory_of_another_run_is_refused(script: Script, fake: Path, tmp_path: Path):
    assert sweep(script, fake, "--set=optim.lr=0.1,0.2", "--set=seed=0").returncode == 0
    other = sweep(script, fake, "--set=optim.lr=0.1,0.2", "--set=seed=1")
    assert other.returncode == 2
    assert "holds a run with other arguments (--config.seed=0, --config.seed=1)" in other.stderr
    (tmp_path / "out/optim.lr=0.1/sweep.json").unlink()
    other = sweep(script, fake, "--set=optim.lr=0.1,0.2", "--set=seed=0")
    assert "holds a run that no sweep started" in other.stderr
    unknown = sweep(script, fake, "--set=optim.lr=0.2,0.3", "--set=seed=0", "--sort=top5")
    assert "no run has the metric 'top5'; known: eval/test/top1, train/loss" in unknown.stderr


@pytest.mark.slow
def test_a_real_training(shards: Path, tmp_path: Path):
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPTS / "sweep.py"),
            "--config=configs/videomae/pretrain.py:size=tiny",
            f"--out={tmp_path}/out",
            "--set=seed=0,1",
            *(f"--set={word.removeprefix('--')}" for word in TINY_PRETRAIN),
            "--set=steps=2",
            "--set=optim.warmup_steps=1",
            f"--set=data.train={shards}",
            "--parallel=2",
            "--sort=train/loss",
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for seed in (0, 1):
        about = json.loads((tmp_path / f"out/seed={seed}/run.json").read_text())
        assert about["config"]["seed"] == seed and about["params_digest"]
    assert "| seed | status | step | train/loss |" in done.stdout
