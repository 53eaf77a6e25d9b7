"""The same run in two processes: same losses, one set of files, and one process can take over."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, TINY_PRETRAIN, environment


def arguments(shards: Path, workdir: Path, steps: int) -> list[str]:
    return [
        "internvideo_jax.train",
        "--config=configs/videomae/pretrain.py:size=tiny",
        *TINY_PRETRAIN,
        f"--workdir={workdir}",
        f"--config.data.train={shards}",
        f"--config.steps={steps}",
        "--config.optim.warmup_steps=4",
        "--config.log.every=1",
        "--config.log.report=False",
        "--config.checkpoint.every=6",
        "--config.evals.reconstruction.views.batch=8",
    ]


def together(arguments: list[str], processes: int) -> None:
    """Runs `python -m ARGUMENTS` as a job of several processes on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={
                **environment(),
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    outputs = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * processes, "\n".join(outputs)[-4000:]


def rows(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> np.ndarray:
    return np.array([row["train/loss"] for row in rows(workdir) if "train/loss" in row])


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(command, shards, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    done = command(*arguments(shards, one, 12))
    assert done.returncode == 0, done.stderr
    together(arguments(shards, two, 12), 2)
    assert len(losses(two)) == 12
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5, rtol=0)
    last = [rows(run)[-1]["eval/reconstruction/loss"] for run in (one, two)]
    np.testing.assert_allclose(last[1], last[0], atol=1e-5)
    assert rows(two)[-1]["eval/reconstruction/clips"] == 20

    # One process takes over at step 6, where two of them left a checkpoint.
    shutil.rmtree(two / "checkpoints/12")
    done = command(*arguments(shards, two, 12))
    assert done.returncode == 0, done.stderr
    assert "continuing at step 6" in done.stdout
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_that_share_clips_read_the_same(command, shards, tmp_path):
    """Each has half the tokens of every clip; one process goes on where they stopped."""
    one, two = tmp_path / "one", tmp_path / "two"
    done = command(*arguments(shards, one, 12))
    assert done.returncode == 0, done.stderr
    shared = ("--config.mesh.data=1", "--config.mesh.sequence=2")
    together([*arguments(shards, two, 12), *shared], 2)
    assert len(losses(two)) == 12
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5, rtol=0)
    results = [json.loads((run / "results/reconstruction.json").read_text()) for run in (one, two)]
    assert results[1]["pixels"] == results[0]["pixels"]  # each counted once

    shutil.rmtree(two / "checkpoints/12")
    done = command(*arguments(shards, two, 12))
    assert done.returncode == 0, done.stderr
    assert "continuing at step 6" in done.stdout and "mesh.sequence 2 -> 1" in done.stdout
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5, rtol=0)
