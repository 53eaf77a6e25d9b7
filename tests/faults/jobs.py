"""Jobs of several processes on this machine, for the fault tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import ROOT, TINY_PRETRAIN, environment

# Seconds for one job, a multiple of what it takes on an idle machine.
LIMIT = 120 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
SETTINGS = (
    "--config=configs/videomae/pretrain.py:size=tiny",
    *TINY_PRETRAIN,
    "--config.optim.warmup_steps=4",
    "--config.log.every=4",
    "--config.log.report=False",
    "--config.evals.reconstruction.views.batch=8",
)


def launched(
    arguments: list[str], processes: int, devices: int = 1, options: tuple[str, ...] = ()
) -> list[str]:
    """The command that starts `python ARGUMENTS` as a job."""
    return [
        sys.executable,
        "-m",
        "internvideo_jax.launch",
        f"--processes={processes}",
        f"--devices-per-process={devices}",
        "--backoff=0.1",
        *options,
        "--",
        "python",
        *arguments,
    ]


def training(shards: Path, workdir: Path, *overrides: str, faults: str = "-") -> list[str]:
    """Arguments of python for a run that the saboteur looks after."""
    workdir.mkdir(parents=True, exist_ok=True)
    return [
        "-m",
        "tests.faults.saboteur",
        str(workdir),
        faults,
        "--",
        *SETTINGS,
        f"--workdir={workdir}",
        f"--config.data.train={shards}",
        *overrides,
    ]


def finished(command: list[str], expected: int = 0, limit: float = LIMIT) -> str:
    """Runs it to the end; everything that it printed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
    )
    assert done.returncode == expected, f"{done.returncode}: {done.stdout[-4000:]}"
    return done.stdout


def digest(workdir: Path) -> str:
    return json.loads((workdir / "run.json").read_text())["params_digest"]


def rows(workdir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def losses(workdir: Path) -> np.ndarray:
    return np.array([row["train/loss"] for row in rows(workdir) if "train/loss" in row])


def ids(workdir: Path) -> dict[int, set[int]]:
    """step -> record numbers of the global batch, from all processes that ever ran it."""
    found: dict[int, set[int]] = {}
    for path in workdir.glob("ids-*.jsonl"):
        for row in rows(workdir, path.name):
            found.setdefault(row["step"], set()).update(row["ids"])
    return found
