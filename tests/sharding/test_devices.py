"""The same run on one device and on eight, on every kind of mesh."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY_PRETRAIN, once

FSDP, TENSOR = "--config.mesh.fsdp={}", "--config.mesh.tensor=2"
SMALL = "--config.mesh.shard_above=64"  # the test model has no large parameters


def losses(workdir: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["train/loss"] for row in rows if "train/loss" in row])


@pytest.fixture(scope="module")
def run(command, shards):
    def train(workdir: Path, devices: int, *overrides: str) -> np.ndarray:
        done = command(
            "internvideo_jax.train",
            "--config=configs/videomae/pretrain.py:size=tiny",
            *TINY_PRETRAIN,
            f"--workdir={workdir}",
            f"--config.data.train={shards}",
            "--config.steps=20",
            "--config.optim.warmup_steps=4",
            "--config.data.global_batch=16",
            "--config.log.every=1",
            "--config.log.report=False",
            "--config.checkpoint.every=1000",
            "--config.evals.reconstruction.views.batch=8",
            *overrides,
            devices=devices,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return losses(workdir)

    return train


@pytest.fixture(scope="module")
def reference(run, tmp_path_factory) -> np.ndarray:
    return losses(once(tmp_path_factory, "one-device", lambda folder: run(folder, 1)))


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="data"),
        pytest.param((FSDP.format(2), TENSOR, SMALL), id="fsdp-tensor"),
    ],
)
def test_eight_devices_give_the_losses_of_one(run, reference, overrides, tmp_path):
    found = run(tmp_path, 8, *overrides)
    assert len(found) == len(reference) == 20
    np.testing.assert_allclose(found, reference, atol=1e-5, rtol=0)


def test_the_losses_are_not_trivially_equal(run, reference, tmp_path):
    other = run(tmp_path, 1, "--config.seed=1")
    assert np.abs(other - reference).max() > 1e-3
