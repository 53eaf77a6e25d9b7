"""Two short runs that the tests of the commands look at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.conftest import TINY, TINY_PRETRAIN, Run, once

PRETRAIN = "--config=configs/videomae/pretrain.py:size=tiny,monitor"
FINETUNE = "--config=configs/videomae/finetune.py:size=tiny"
SHORT = ("--config.steps=6", "--config.optim.warmup_steps=2", "--config.log.every=2")
EMA = "--config.optim.ema_decay=0.99"


def training(recipe: str, data: Path, workdir: Path, *flags: str) -> tuple[str, ...]:
    """The words of a short training run; what `flags` say counts."""
    tiny = TINY_PRETRAIN if recipe == PRETRAIN else TINY
    where = (f"--workdir={workdir}", f"--config.data.train={data}")
    return ("internvideo_jax.train", recipe, *tiny, *SHORT, *where, *flags)


def evaluation(checkpoint: Path, data: Path, out: Path, *flags: str) -> tuple[str, ...]:
    """The words of an evaluation of a fine-tuned run, or of weights under its recipe."""
    where = (f"--checkpoint={checkpoint}", f"--config.data.train={data}", f"--out={out}")
    return ("internvideo_jax.evaluate", FINETUNE, *TINY, *where, *flags)


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
    flags = {
        "pretrain": (PRETRAIN, "--config.evals.knn.every=4"),
        "finetune": (FINETUNE, f"--config.init_from={folder}/pretrain", EMA),
    }
    for name, (recipe, *others) in flags.items():
        done = command(*training(recipe, shards, folder / name, *others))
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / f"{name}.txt").write_text(done.stdout)
