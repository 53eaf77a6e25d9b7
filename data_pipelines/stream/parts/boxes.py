"""The annotated rectangles of an example where its crop shows them, padded with a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.config import DataConfig
from data_pipelines.limits import limited
from data_pipelines.records.localisation import Box
from data_pipelines.stream.parts.base import (
    Part,
    Reading,
    Rows,
    Spec,
    Window,
    padded,
    seconds,
)


@dataclasses.dataclass(frozen=True)
class Boxes(Part):
    """Boxes of all times of the record, in its order.

    `boxes` (N, 4) float32 are top, left, bottom and right in shares of the image that the
    example shows: cut to its crop, mirrored with it. `boxes_time` (N,) float32 are seconds from the
    start of the clip, `boxes_label` (N, K) int32 the classes, padded with -1, `boxes_track` (N,)
    int32 the ids, -1 for none. `boxes_valid` (N,) bool is False for padding and for boxes outside
    of the crop.

    Attributes:
      most, labels: N and K; a record with more is an error.
    """

    most: int = limited(64, least=1)
    labels: int = limited(1, least=1)
    name: str = "boxes"

    def spec(self) -> Spec:
        """See the class."""
        return {
            "boxes": ((self.most, 4), np.dtype(np.float32)),
            "boxes_time": ((self.most,), np.dtype(np.float32)),
            "boxes_label": ((self.most, self.labels), np.dtype(np.int32)),
            "boxes_track": ((self.most,), np.dtype(np.int32)),
            "boxes_valid": ((self.most,), np.dtype(np.bool_)),
        }

    def identity(self) -> Mapping[str, Any]:
        """How many."""
        return {"most": self.most, "labels": self.labels}

    def check(self, config: DataConfig) -> None:
        """ValueError beside augmentation that moves pixels and not boxes."""
        if config.augment.rand_augment:
            raise ValueError(
                f"the part {self.name} in config.data.parts with "
                f"config.data.augment.rand_augment = {config.augment.rand_augment!r}: its shears "
                "would move the pixels and not the boxes; switch it off"
            )

    def fill(self, reading: Reading, out: Rows) -> None:
        """See `Part.fill`."""
        found, where = reading.record.boxes, reading.address
        part = f"of the part {self.name} in config.data.parts"
        valid = padded(len(found), self.most, "boxes", where, f"`most` {part}")
        for array in out.values():
            array[:] = 0
        out["boxes_label"][:], out["boxes_track"][:] = -1, -1
        for number, box in enumerate(found):
            what = "classes of one box"
            padded(len(box.labels), self.labels, what, where, f"`labels` {part}")
            out["boxes_time"][:, number] = seconds(box.time_us, reading)
            out["boxes_track"][:, number] = box.track
            for place, label in enumerate(box.labels):
                out["boxes_label"][:, number, place] = reading.label(label)
        for row in range(len(out["boxes"])):
            inside = shown(found, reading.windows(row))
            out["boxes"][row, : len(found)] = inside
            height, width = inside[:, 2] - inside[:, 0], inside[:, 3] - inside[:, 1]
            valid[: len(found)] = (height > 0) & (width > 0)
            out["boxes_valid"][row] = valid


def shown(boxes: tuple[Box, ...], window: Window) -> np.ndarray:
    """(N, 4) float32, boxes in shares of a window; those outside of it have no area."""
    edges = np.array([(box.y1, box.x1, box.y2, box.x2) for box in boxes], np.float64).reshape(-1, 4)
    low = np.array([window.top, window.left] * 2)
    high = np.array([window.bottom, window.right] * 2)
    inside = np.clip((edges - low) / (high - low), 0, 1)
    if window.mirrored:
        inside[:, [1, 3]] = 1 - inside[:, [3, 1]]
    return inside.astype(np.float32)
