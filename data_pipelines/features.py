"""Cached arrays of a set's records, such as the features of a frozen teacher, for the batch.

They are those of a companion (:mod:`data_pipelines.companion`) and belong to the record, whichever
of its frames and whichever crop an example has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import storage
from data_pipelines.companion import Companion, open_companion
from data_pipelines.config import ReaderConfig
from data_pipelines.dataset import Dataset, UnreadableRecordError
from data_pipelines.record_index import CorruptRecordError

PREFIX = "features/"


@dataclasses.dataclass(frozen=True)
class Features:
    """The companion of one set, all of whose records have arrays of the same names and shapes.

    Attributes:
      shapes: name -> (shape, type) of one record's array.
      identity: which arrays they are, as JSON values.
    """

    companion: Companion
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    identity: Mapping[str, Any]

    @classmethod
    def open(cls, place: str, dataset: Dataset, reader: ReaderConfig) -> Features:
        """Opens the companion of a set.

        Args:
          place: its directory, in that of the set unless it is absolute or an address.

        Raises:
          FileNotFoundError: it is not there.
          ValueError: it belongs to other records, or cannot be read.
        """
        directory = place
        if not storage.is_remote(place) and not os.path.isabs(place):
            directory = storage.join(dataset.manifest.directory, place)
        companion = open_companion(
            directory, dataset.manifest, dataset.split, check_crc=reader.check_crc
        )
        # The form of a batch must not depend on which records are in it.
        first = _first(companion, reader)
        shapes = {name: (array.shape, array.dtype) for name, array in sorted(first.items())}
        digest = hashlib.sha256(json.dumps(companion.digests).encode()).hexdigest()
        identity = {"name": companion.name, "arrays": digest[:16]}
        return cls(companion, shapes, identity)

    def read(self, index: int, where: str) -> dict[str, np.ndarray]:
        """The arrays of a record.

        Args:
          index: its number.
          where: its name, for errors.

        Raises:
          UnreadableRecordError: they are damaged.
          ValueError: they have other names, shapes or types than the first record's.
        """
        try:
            arrays = self.companion[index]
        except CorruptRecordError as error:
            raise UnreadableRecordError(f"the features of {where}: {error}") from error
        found = {name: (array.shape, array.dtype) for name, array in sorted(arrays.items())}
        if found != self.shapes:
            raise ValueError(
                f"the features of {where} are {_say(found)}, those of the first record "
                f"{_say(self.shapes)}; a batch takes arrays of one shape: write them so"
            )
        return arrays


def _first(companion: Companion, reader: ReaderConfig) -> dict[str, np.ndarray]:
    for index in range(len(companion)):
        try:
            return companion[index]
        except CorruptRecordError:
            if reader.on_corrupt == "raise" or index + 1 == len(companion):
                raise
    raise ValueError(f"{companion}: has no records")


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
