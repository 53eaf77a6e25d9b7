"""Decoded frames to the pixels of one training clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines import transforms
from data_pipelines.manifest import Manifest

CROPS = ("multiscale", "random_resized", "center")


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random crop, resize and flip of one clip, the same for all its frames.

    Attributes:
      size: height and width of the result.
      crop: one of CROPS.
      flip: mirror every second clip left-right.
    """

    size: int
    crop: str
    flip: bool

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"unknown config.data.crop {self.crop!r}; known: {', '.join(CROPS)}")

    def __call__(
        self,
        frames: Sequence[np.ndarray],
        rng: np.random.Generator,
        *,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """T frames (H, W, 3) uint8 -> (T, size, size, 3) uint8, written into `out` if given."""
        height, width = frames[0].shape[:2]
        if self.crop == "multiscale":
            box = transforms.multiscale_crop(height, width, self.size, rng)
        elif self.crop == "random_resized":
            box = transforms.random_resized_crop(height, width, rng)
        else:
            box = transforms.center_box(height, width, min(height, width))
        flip = self.flip and bool(rng.random() < 0.5)
        antialias = self.crop != "random_resized"
        return transforms.crop_resize(
            frames, box, self.size, antialias=antialias, flip=flip, out=out
        )


def resolve_flip(flip: str, manifest: Manifest) -> bool:
    """Whether to mirror: `auto` and `on` respect labels that change under a flip."""
    if flip not in ("off", "on", "auto"):
        raise ValueError(f"unknown config.data.flip {flip!r}; known: off, on, auto")
    if flip == "on" and manifest.flip_changes_label:
        raise ValueError(
            f"config.data.flip=on, but the labels of {manifest.name!r} change under a flip (its "
            "manifest says so); use auto or off"
        )
    return flip == "on" or (flip == "auto" and not manifest.flip_changes_label)
