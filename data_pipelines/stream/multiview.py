"""The views of a video in a test: which frames, and which parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.clips import sampling, transforms
from data_pipelines.clips.augment import Edges
from data_pipelines.config import ClipConfig, ViewConfig


def check(config: ViewConfig) -> None:
    """ValueError for a rule that does not exist, or clips without frames or pixels."""
    check_clip(config.clip, sampling.VIEW_RULES)
    side = config.clip.resolution
    transforms.crop_boxes(side, side, side, config.crops, config.crop_rule)  # raises if unknown


def choose(config: ViewConfig, times_us: Any, fps: float) -> np.ndarray:
    """(clips, T) numbers of the frames; ValueError where the rule does not fit the video.

    Args:
      times_us: (N,) of the frames of the video, in microseconds.
    """
    clip = config.clip
    return sampling.view_frames(
        clip.sampling, times_us, fps, clip.frames, clip.stride, config.clips
    )


def cut(
    config: ViewConfig, wanted: np.ndarray, frames: Sequence[np.ndarray], out: np.ndarray
) -> None:
    """Writes (clips * crops, T, H, W, 3) uint8, clip-major.

    Args:
      wanted: of `choose`.
      frames: those frames in that order, (H, W, 3) uint8.
    """
    clip = config.clip
    if config.crop_rule == transforms.SQUASH:
        whole = (0, 0, *frames[0].shape[:2])
        for which, row in enumerate(out):
            images = frames[which * clip.frames : (which + 1) * clip.frames]
            transforms.crop_resize(images, whole, clip.resolution, method="bicubic", out=row)
        return
    resized: dict[int, np.ndarray] = {}
    for number, frame in zip(wanted.ravel(), frames, strict=True):
        if int(number) not in resized:
            resized[int(number)] = transforms.resize_short_side(frame, clip.resolution)
    shape = resized[int(wanted[0, 0])].shape
    boxes = transforms.crop_boxes(
        shape[0], shape[1], clip.resolution, config.crops, config.crop_rule
    )
    for which, numbers in enumerate(wanted):
        images = [resized[int(number)] for number in numbers]
        for crop, box in enumerate(boxes):
            row = out[which * len(boxes) + crop]
            transforms.crop_resize(images, box, clip.resolution, out=row)


def windows(config: ViewConfig, height: int, width: int) -> list[Edges]:
    """What each crop of frames of this size shows: top, left, bottom, right in shares."""
    if config.crop_rule == transforms.SQUASH:
        return [(0.0, 0.0, 1.0, 1.0)]
    size = config.clip.resolution
    high, wide = transforms.short_side_shape(height, width, size)
    return [
        (top / high, left / wide, (top + tall) / high, (left + broad) / wide)
        for top, left, tall, broad in transforms.crop_boxes(
            high, wide, size, config.crops, config.crop_rule
        )
    ]


def check_clip(clip: ClipConfig, known: Sequence[str]) -> None:
    """ValueError for a clip that no rule of `known` chooses, or without frames or pixels."""
    if clip.sampling not in known:
        raise ValueError(f"unknown clip sampling {clip.sampling!r}; known: {', '.join(known)}")
    if min(clip.frames, clip.stride, clip.resolution) < 1:
        raise ValueError(f"clip frames, stride and size must be positive, found {clip}")
