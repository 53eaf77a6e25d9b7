"""The annotated spans of an example, padded with a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.limits import limited
from data_pipelines.stream.parts.base import Part, Reading, Rows, Spec, padded, seconds


@dataclasses.dataclass(frozen=True)
class Segments(Part):
    """`segments` (S, 2) float32, start and end in seconds from the start of the clip, `segments_
    label` (S,) int32, -1 without a class, and `segments_valid` (S,) bool, False for padding.

    Attributes:
      most: S; a record with more is an error.
    """

    most: int = limited(64, least=1)
    name: str = "segments"

    def spec(self) -> Spec:
        """See the class."""
        return {
            "segments": ((self.most, 2), np.dtype(np.float32)),
            "segments_label": ((self.most,), np.dtype(np.int32)),
            "segments_valid": ((self.most,), np.dtype(np.bool_)),
        }

    def identity(self) -> Mapping[str, Any]:
        """How many."""
        return {"most": self.most}

    def fill(self, reading: Reading, out: Rows) -> None:
        """See `Part.fill`."""
        found = reading.record.segments
        setting = f"`most` of the part {self.name} in config.data.parts"
        out["segments_valid"][:] = padded(
            len(found), self.most, "segments", reading.address, setting
        )
        out["segments"][:], out["segments_label"][:] = 0, -1
        for number, segment in enumerate(found):
            ends = seconds(segment.start_us, reading), seconds(segment.end_us, reading)
            out["segments"][:, number] = ends
            out["segments_label"][:, number] = reading.label(segment.label)
