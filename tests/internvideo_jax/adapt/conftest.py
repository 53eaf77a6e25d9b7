"""Weights that a pre-training of three steps left, and the recipe that made them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from internvideo_jax.config import TrainConfig
from internvideo_jax.train import train
from tests.conftest import once
from tests.recipes import shipped


@pytest.fixture(scope="session")
def recipe(shards: Path) -> TrainConfig:
    """VideoMAE, the smallest."""
    config = shipped.config("videomae-pretrain-tiny", "smoke")
    data = dataclasses.replace(config.data, train=str(shards))
    return dataclasses.replace(config, data=data)


@pytest.fixture(scope="session")
def start(recipe: TrainConfig, tmp_path_factory) -> Path:
    """A run."""
    return once(tmp_path_factory, "adapt-start", lambda folder: _train(recipe, folder)) / "run"


def _train(recipe: TrainConfig, folder: Path) -> None:
    if train(recipe, folder / "run"):
        raise RuntimeError("the run was interrupted")
