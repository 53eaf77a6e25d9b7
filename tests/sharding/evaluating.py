"""Evaluates a small classifier, as the only process or as one of a job.

python -m tests.sharding.evaluating MODEL WEIGHTS DATA OUT [BATCH]

A name of MODELS, three folders, and how many videos are read at a time.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.records import manifest
from internvideo_jax.config import DataConfig, TrainConfig
from internvideo_jax.evaluate import evaluate
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.parallel import multihost
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights.files import Weights, save_ours
from tests.recipes import shipped

MODELS = {"videomae": "videomae/finetune.py", "uniformerv2": "uniformerv2/finetune.py"}


def config_of(name: str, data: Path, batch: int = 6) -> TrainConfig:
    """The tiny recipe with two clips and three crops; `batch` videos are read at a time."""
    config: TrainConfig = shipped.module(MODELS[name]).tiny()
    test = config.evals["test"]
    assert isinstance(test, Accuracy)
    views = dataclasses.replace(test.views, clips=2, crops=3, batch=batch)
    clip = dataclasses.replace(views.clip, sampling="segments")
    test = dataclasses.replace(test, views=dataclasses.replace(views, clip=clip))
    small = config.model.smallest()
    model = dataclasses.replace(
        small, frames=config.model.frames, resolution=config.model.resolution
    )
    return dataclasses.replace(
        config, model=model, data=DataConfig(eval=str(data)), evals={"test": test}
    )


def save_random(name: str, data: Path, folder: Path) -> None:
    """Weights all of which matter to the result: what starts at zero is moved as well."""
    classes = len(manifest.load(str(data)).classes)
    model: Any = dataclasses.replace(config_of(name, data).model, classes=classes).model()
    rng = np.random.default_rng(0)
    params = {
        path: np.asarray(value) + rng.normal(0, 0.05, value.shape).astype(value.dtype)
        for path, value in flatten_paths(jax.jit(model.init)(jax.random.key(0))).items()
    }
    save_ours(
        folder / f"{name}.safetensors",
        Weights(model.config.name, params, {"patch": model.config.patch, "tubelet": 2}),
    )


def main() -> None:
    name, batch = sys.argv[1], [int(text) for text in sys.argv[5:]]
    weights, data, out = (Path(text) for text in sys.argv[2:5])
    with multihost.joined(notices=False):
        file = weights / f"{name}.safetensors"
        evaluate(config_of(name, data, *batch), str(file), out / "result.json")


if __name__ == "__main__":
    main()
