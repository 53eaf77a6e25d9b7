"""Cached arrays of a set's records, such as the features of a frozen teacher, for the batch.

They are those of a companion (`records.companion`) and belong to the record, whichever
of its frames and whichever crop an example has; with config.data.fixed_views to its views,
one row of each array to a view.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.config import ReaderConfig
from data_pipelines.records import storage
from data_pipelines.records.companion import Companion, open_companion
from data_pipelines.records.dataset import Dataset, UnreadableRecordError
from data_pipelines.records.index import CorruptRecordError
from data_pipelines.stream.parts.base import Part, Reading, Rows, Spec

PREFIX = "features/"


@dataclasses.dataclass(frozen=True)
class Features(Part):
    """The companion of one set, all of whose records have arrays of the same names and shapes.

    Attributes:
      shapes: name -> (shape, type) of one example's array.
      source: which arrays they are, as JSON values.
      views: rows of a record's arrays, of which an example has one; 0: it has them whole.
    """

    companion: Companion
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    source: Mapping[str, Any]
    fixed_views: int = 0

    @classmethod
    def of(
        cls, place: str, dataset: Dataset, reader: ReaderConfig, *, fixed_views: int = 0
    ) -> Features:
        """Opens the companion of a set.

        Args:
          place: its directory, in that of the set unless it is absolute or an address.
          views: that each of its arrays has as its first axis; 0: of any shape.

        Raises:
          FileNotFoundError: it is not there.
          ValueError: it belongs to other records, cannot be read, or has another number of views.
        """
        directory = directory_of(place, dataset)
        companion = open_companion(
            directory, dataset.manifest, dataset.split, check_crc=reader.check_crc
        )
        # The form of a batch must not depend on which records are in it.
        first = _first(companion, reader, fixed_views)
        shapes = {name: (array.shape, array.dtype) for name, array in sorted(first.items())}
        if fixed_views:
            wrong = [
                f"{name} {shape}"
                for name, (shape, _) in shapes.items()
                if shape[:1] != (fixed_views,)
            ]
            if wrong:
                raise ValueError(
                    f"{directory}: config.data.fixed_views = {fixed_views} needs arrays with "
                    f"{fixed_views} as their first axis, one row for each view; found "
                    f"{', '.join(wrong)}. Set config.data.fixed_views to the views that they were "
                    "made with (0 for arrays of whole records), or compute them again"
                )
            shapes = {name: (shape[1:], dtype) for name, (shape, dtype) in shapes.items()}
        return cls(companion, shapes, identity_of(companion), fixed_views)

    def spec(self) -> Spec:
        """See the class."""
        return {f"{PREFIX}{name}": shape for name, shape in self.shapes.items()}

    def identity(self) -> Mapping[str, Any]:
        """The companion that they come from."""
        return {"features": dict(self.source)}

    def fill(self, reading: Reading, out: Rows) -> None:
        """See `Part.fill`."""
        for name, array in self.read(reading.index, reading.address, reading.view).items():
            out[f"{PREFIX}{name}"][:] = array

    def read(self, index: int, where: str, view: int = 0) -> dict[str, np.ndarray]:
        """The arrays of a record, or of one view of it.

        Args:
          index: its number.
          where: its name, for errors.
          view: which row, if they have views.

        Raises:
          UnreadableRecordError: they are damaged, or were not made as the record was.
          ValueError: they have other names, shapes or types than the first record's.
        """
        try:
            arrays = self.companion[index]
        except CorruptRecordError as error:
            raise UnreadableRecordError(f"the features of {where}: {error}") from error
        if self.fixed_views and _left_out(arrays):
            raise UnreadableRecordError(
                f"the features of {where} are empty: the record could not be read when they were "
                "made. Repair it and make them again, or set config.data.reader.on_corrupt = "
                '"substitute" to train without it'
            )
        if self.fixed_views:
            arrays = {
                name: array[view, ...] if array.shape[:1] == (self.fixed_views,) else array
                for name, array in arrays.items()
            }
        found = {name: (array.shape, array.dtype) for name, array in sorted(arrays.items())}
        if found != self.shapes:
            raise ValueError(
                f"the features of {where} are {_say(found)}, those of the first record "
                f"{_say(self.shapes)}; a batch takes arrays of one shape: write them so"
            )
        return arrays


@dataclasses.dataclass(frozen=True)
class Cached(Part):
    """The companion of any set: what its arrays are, only that of an opened set knows."""

    place: str
    reader: ReaderConfig
    fixed_views: int = 0

    def spec(self) -> Spec:
        """None yet: what a set has is known when it is opened."""
        return {}

    def open(self, dataset: Dataset) -> Features:
        """The features of a set."""
        return Features.of(self.place, dataset, self.reader, fixed_views=self.fixed_views)


def identity_of(companion: Companion) -> dict[str, Any]:
    """Which arrays a companion has, as JSON values."""
    digest = hashlib.sha256(json.dumps(companion.digests).encode()).hexdigest()
    return {"name": companion.name, "arrays": digest[:16]}


def directory_of(place: str, dataset: Dataset) -> str:
    """The directory of a companion: in that of its set unless absolute or an address."""
    if storage.is_remote(place) or os.path.isabs(place):
        return place
    return storage.join(dataset.manifest.directory, place)


def left_out(shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, np.ndarray]:
    """What stands for a record whose features could not be made: arrays of no view.

    Args:
      shapes: name -> (shape, type) of one view.
    """
    return {name: np.zeros((0, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def _left_out(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(array.shape[:1] == (0,) for array in arrays.values())


def _first(companion: Companion, reader: ReaderConfig, fixed_views: int) -> dict[str, np.ndarray]:
    empty = False
    for index in range(len(companion)):
        try:
            found = companion[index]
        except CorruptRecordError:
            if reader.on_corrupt == "raise" or index + 1 == len(companion):
                raise
            continue
        if not (fixed_views and _left_out(found)):
            return found
        empty = True
    raise ValueError(f"{companion}: {'all its records are empty' if empty else 'has no records'}")


def check_alike(sets: Sequence[tuple[str, Features]]) -> None:
    """ValueError where sets that share batches have arrays of other names, shapes or types."""
    for name, features in sets[1:]:
        if features.shapes != sets[0][1].shapes:
            raise ValueError(
                f"config.data.features: those of {name} are {_say(features.shapes)}, those of "
                f"{sets[0][0]} {_say(sets[0][1].shapes)}; sets of one mixture and media type need "
                "arrays of the same names, shapes and types"
            )


def _say(shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in shapes.items())
