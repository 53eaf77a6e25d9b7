"""Exit codes of the training commands, by the real errors of the places that raise them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.commands.exit_codes import ExitCode, exit_code_of, message_of
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.config import CheckpointConfig
from internvideo_jax.parallel import multihost
from internvideo_jax.telemetry.writer import METRICS, MetricWriter
from internvideo_jax.types import TrainState
from tests.conftest import ROOT, environment
from tests.internvideo_jax.run.test_guard import Disk, loop


def test_the_codes_of_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "tests.internvideo_jax.guarded_ends"],
        cwd=ROOT,
        env={**environment(), "GLIBC_TUNABLES": ""},  # else it starts itself again
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert [int(line) for line in done.stdout.split()] == [0, 1, 2, 2, 2, 3, 75, 75, 70, 130], (
        done.stdout + done.stderr[-3000:]
    )
    assert done.stderr.count("Traceback") == 1 and "KeyError: 'row'" in done.stderr
    assert "error: worker. Once this has passed, start the same command again" in done.stderr
    assert done.stderr.count("(--debug shows where)") == 6 and "\nstopped\n" in done.stderr


def test_a_full_disk_under_the_metrics(tmp_path):
    writer = MetricWriter(tmp_path, resume_step=0)
    writer._files[METRICS] = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as caught:
        writer.metrics(1, {"loss": 1.0})
    assert exit_code_of(caught.value) == ExitCode.AGAIN


def test_a_full_disk_under_the_checkpoints(tmp_path, monkeypatch):
    state = TrainState(
        step=jnp.asarray(3),
        params={"w": jnp.ones(4)},
        opt_state=optax.EmptyState(),
        ema=None,
        nonfinite=jnp.asarray(0),
    )
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(RuntimeError, match="could not save the checkpoint of step 3") as caught:
        checkpoints.save(3, state, {})
    checkpoints.close()
    assert exit_code_of(caught.value) == ExitCode.AGAIN
    assert message_of(caught.value).count("again") == 1


def test_a_run_whose_steps_are_not_finite_has_no_hope():
    with pytest.raises(RuntimeError, match="allows 5") as caught:
        loop(8, range(3, 9), Disk(), limit=5)
    assert exit_code_of(caught.value) == ExitCode.FAILED


@pytest.fixture
def job(monkeypatch):
    """Two processes of which this one is number 0, without any; notes what the other is told."""
    told: list[tuple] = []
    others = SimpleNamespace(watch=lambda end: told.append(end), leave=lambda *a: told.append(a))
    monkeypatch.setattr(multihost, "initialize", lambda *_, **__: others)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost.atexit, "register", lambda _: None)

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(multihost.time, "sleep", lambda _: None)
    return told


@pytest.mark.parametrize(
    ("code", "ends"), [(None, 75), (75, 75), (143, 75), (137, 75), (2, 2), (3, 3), (70, 70)]
)
def test_what_a_process_does_when_another_one_is_gone(job, capsys, code, ends):
    with multihost.joined(safe=lambda: "step 3 is safe"):
        (end,) = job
        with pytest.raises(SystemExit) as left:
            end("process 1 is gone", code)
    assert left.value.code == ends
    assert ("start all processes" in capsys.readouterr().err) is (ends == 75)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such clip"), 2),
        (RuntimeError("config.max_nonfinite"), 3),
        (OSError(28, "No space left on device"), 75),
        (np.linalg.LinAlgError("singular"), 2),  # a ValueError of numpy's
        (KeyError("row"), 70),
    ],
)
def test_the_others_are_told_the_code_of_an_error(job, error, code):
    with pytest.raises(type(error)), multihost.joined():
        raise error
    assert job[1][1] == code


def test_a_collective_that_breaks_is_another_process(job, capsys):
    with pytest.raises(SystemExit) as left, multihost.joined():
        raise RuntimeError("Gloo all-reduce failed: Connection closed by peer")
    assert left.value.code == ExitCode.AGAIN
    assert "another process or its host is probably gone" in capsys.readouterr().err
