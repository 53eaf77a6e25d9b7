"""The clips of a model."""

from __future__ import annotations

from data_pipelines.config import ClipConfig
from internvideo_jax.protocols import ModelConfig, clip_of


def clip_for(model: ModelConfig, sampling: str = "stepped", stride: int = 1) -> ClipConfig:
    """Frames and pixels of a model; by default one frame of each of as many parts of the video."""
    takes = clip_of(model)
    return ClipConfig(
        frames=takes.frames, stride=stride, resolution=takes.resolution, sampling=sampling
    )
