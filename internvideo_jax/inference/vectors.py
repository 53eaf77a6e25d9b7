"""What the models gave for the clips of a pass, and vectors of length 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a pass that are valid.

    Attributes:
      record, view, label: (R,) int32; label -1 where there is none.
      values: (R, ...) what the model gave.
    """

    record: np.ndarray
    view: np.ndarray
    label: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.record)

    def where(self, chosen: np.ndarray) -> Rows:
        """Those of a mask, or of numbers in their order."""
        parts = (self.record, self.view, self.label, self.values)
        return Rows(*(part[chosen] for part in parts))

    def sorted(self) -> Rows:
        """By record and view, each once, so that sums add up in one order on any mesh."""
        pairs = np.stack([self.record, self.view], axis=1)
        return self.where(np.unique(pairs, axis=0, return_index=True)[1])


def gather(outputs: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]]) -> Rows:
    """The valid rows of (batch, values) of all steps, in their order."""
    steps = list(outputs)
    valid = np.concatenate([batch["valid"] for batch, _ in steps])
    record, view, label = (
        np.concatenate([batch[key] for batch, _ in steps])[valid]
        for key in ("index", "view", "label")
    )
    return Rows(record, view, label, np.concatenate([values for _, values in steps])[valid])


def mean_of_views(
    record: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the videos, their first rows, and the means (V, E) of their views of length 1.

    Args:
      record: (R,) ascending: which video a row belongs to.
      values: (R, E), any length.
    """
    videos, begin = np.unique(record, return_index=True)
    return videos, begin, np.add.reduceat(unit(values), begin, axis=0)


def unit(values: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; computed in double."""
    rows = values.astype(np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def no_direction(values: np.ndarray) -> np.ndarray:
    """(N,) bool: rows that are zero or not finite, and so have no cosine with anything."""
    return np.logical_not(np.isfinite(values).all(axis=1) & values.any(axis=1))
