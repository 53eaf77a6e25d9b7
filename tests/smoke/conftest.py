"""Two short runs that the tests of the commands look at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.conftest import TINY, TINY_PRETRAIN, Run, once

PRETRAIN = "--config=configs/videomae/pretrain.py:size=tiny,monitor"
FINETUNE = "--config=configs/videomae/finetune.py:size=tiny"
SHORT = ("--config.steps=6", "--config.optim.warmup_steps=2", "--config.log.every=2")


@dataclasses.dataclass(frozen=True)
class Runs:
    folder: Path
    shards: Path
    pretrain_output: str
    finetune_output: str


@pytest.fixture(scope="session")
def runs(command, shards, tmp_path_factory) -> Runs:
    """A short pre-training run and a fine-tuning run from it."""
    folder = once(tmp_path_factory, "runs", lambda folder: _train(command, folder, shards))
    outputs = [(folder / f"{name}.txt").read_text() for name in ("pretrain", "finetune")]
    return Runs(folder, shards, *outputs)


def _train(command: Run, folder: Path, shards: Path) -> None:
    pretrain = command(
        "internvideo_jax.train",
        PRETRAIN,
        *TINY_PRETRAIN,
        *SHORT,
        f"--workdir={folder}/pretrain",
        f"--config.data.train={shards}",
        "--config.evals.knn.every=4",
    )
    assert pretrain.returncode == 0, pretrain.stderr[-3000:]
    finetune = command(
        "internvideo_jax.train",
        FINETUNE,
        *TINY,
        *SHORT,
        f"--workdir={folder}/finetune",
        f"--config.data.train={shards}",
        f"--config.init_from={folder}/pretrain",
        "--config.optim.ema_decay=0.99",
    )
    assert finetune.returncode == 0, finetune.stderr[-3000:]
    (folder / "pretrain.txt").write_text(pretrain.stdout)
    (folder / "finetune.txt").write_text(finetune.stdout)
