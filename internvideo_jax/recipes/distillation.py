"""What recipes of students share that learn from frozen teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from internvideo_jax.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.protocols import ModelConfig, clip_of
from internvideo_jax.recipes.clips import clip_for
from internvideo_jax.recipes.feature_evals import on_features
from internvideo_jax.recipes.smoke import sized

# Options that all of them have, and their defaults.
OPTIONS: dict[str, bool | str] = {
    "targets": "step",
    "monitor": False,
    "probes": False,
    "smoke": False,
    "small": False,
}
FOLDER = "features"  # of cached targets, in the folder of the dataset
TARGETS = ("step", "cached")  # where targets come from


def chosen(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """The run with the options `smoke`, `small` and `targets` of its recipe."""
    config = sized(config, options)
    return cached_targets(config) if options["targets"] == "cached" else config


def cached_targets(config: TrainConfig) -> TrainConfig:
    """The same run without teachers, on one fixed view per clip whose targets are cached.

    `ivj teach` computes them with the recipe that has the teachers.
    """
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, fixed_views=1, features=FOLDER),
        objective=dataclasses.replace(config.objective, clip_teacher=None, mae_teacher=None),
    )


def student_clip(model: ModelConfig) -> ClipConfig:
    """What students train on: one random frame of each part of the video."""
    takes = clip_of(model)
    frames = takes.stride * takes.frames
    return ClipConfig(frames=frames, stride=1, resolution=takes.resolution, sampling="parts")


def student_views(model: ModelConfig, batch: int) -> ViewConfig:
    """The clips of evaluators: the student's own frames, one of each part of the video."""
    return ViewConfig(clip=clip_for(model), batch=batch)


def released_run(
    model: ModelConfig,
    objective: Alignment,
    options: Mapping[str, Any],
    *,
    optim: OptimConfig,
    batch: int,
    epochs: int,
) -> TrainConfig:
    """A student as the released scripts train it, on `batch` clips a step."""
    return TrainConfig(
        model=model,
        objective=objective,
        data=DataConfig(
            global_batch=batch, clip=student_clip(model), crop="multiscale", flip="auto"
        ),
        optim=optim,
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(every=50),
        evals=on_features(options, student_views(model, batch=64), every=5000),
        epochs=epochs,
    )


def tiny_run(
    model: ModelConfig,
    objective: Alignment,
    options: Mapping[str, Any],
    *,
    optim: OptimConfig,
    clip: ClipConfig | None = None,
    seen: ClipConfig | None = None,
    steps: int = 2000,
) -> TrainConfig:
    """A small student, minutes on two CPU cores.

    Args:
      clip: of training, by default `student_clip`.
      seen: of evaluators, by default that of `student_views`.
    """
    return TrainConfig(
        model=model,
        objective=objective,
        data=DataConfig(global_batch=32, clip=clip or student_clip(model), crop="multiscale"),
        optim=optim,
        checkpoint=CheckpointConfig(every=200),
        log=LogConfig(every=50),
        evals=on_features(options, ViewConfig(clip=seen or clip_for(model), batch=32), every=500),
        steps=steps,
    )
