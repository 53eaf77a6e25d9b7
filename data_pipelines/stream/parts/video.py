"""The pixels of an example: one random crop in training, one of the views of a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.clips.augment import TrainTransform
from data_pipelines.config import AugmentConfig, ClipConfig, ViewConfig
from data_pipelines.stream import multiview
from data_pipelines.stream.parts.base import Part, Reading, Rows, Spec, given


def spec_of(clip: ClipConfig) -> Spec:
    """`video` (T, H, W, 3) uint8."""
    return {"video": ((clip.frames, clip.resolution, clip.resolution, 3), np.dtype(np.uint8))}


@dataclasses.dataclass(frozen=True)
class Video(Part):
    """Clips of a training stream, each row a crop of its own.

    Attributes:
      transform: of a set; None where only shapes are asked for.
    """

    clip: ClipConfig
    transform: TrainTransform | None = None

    def spec(self) -> Spec:
        """See the class."""
        return spec_of(self.clip)

    def fill(self, reading: Reading, out: Rows) -> None:
        """See `Part.fill`."""
        frames, transform = reading.images(), given(self.transform)
        # Crops are written straight into their rows: the pixels are never copied.
        for row, pixels in enumerate(out["video"]):
            transform(frames, given(reading.generator(row)), out=pixels)

    def identity(self) -> Mapping[str, Any]:
        """What is done to the pixels."""
        transform = given(self.transform)
        identity: dict[str, Any] = {"crop": transform.crop, "flip": transform.flip}
        if transform.config != AugmentConfig():  # what is off is not mentioned
            identity["augment"] = dataclasses.asdict(transform.config)
        return identity


@dataclasses.dataclass(frozen=True)
class Views(Part):
    """All views of a video in a test, clip-major."""

    config: ViewConfig

    def spec(self) -> Spec:
        """See the class."""
        return spec_of(self.config.clip)

    def fill(self, reading: Reading, out: Rows) -> None:
        """See `Part.fill`."""
        frames = reading.images()
        multiview.cut(self.config, given(reading.frames), frames, out["video"])
