"""What recipes of students share that learn from frozen teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.config import ClipConfig, ViewConfig
from internvideo_jax.config import TrainConfig
from internvideo_jax.protocols import ModelConfig, clip_of
from internvideo_jax.recipes.smoke import sized

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
    takes = clip_of(model)
    clip = ClipConfig(
        frames=takes.frames, stride=1, resolution=takes.resolution, sampling="stepped"
    )
    return ViewConfig(clip=clip, batch=batch)
