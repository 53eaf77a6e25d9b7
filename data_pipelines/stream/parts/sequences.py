"""Cached features of varying length, padded with a mask: what localisation learns from.

Their first axis is time. A companion holds them, as it holds those of one shape (`features`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.config import DataConfig
from data_pipelines.limits import limited
from data_pipelines.records.companion import Companion, open_companion
from data_pipelines.records.dataset import Dataset, UnreadableRecordError
from data_pipelines.records.index import CorruptRecordError
from data_pipelines.stream.parts.base import Part, Reading, Rows, Spec
from data_pipelines.stream.parts.features import PREFIX, directory_of, identity_of

_COUNTER = [0, 0, 0, 3]


@dataclasses.dataclass(frozen=True)
class Sequences(Part):
    """`features/ARRAY` (L, C), `features/ARRAY_valid` (L,) bool, False for padding, and `features/
    ARRAY_start` () int32, the number of the first row that is there.

    The length is the same for all batches, so that one program is compiled and all hosts agree. Of
    a longer array training takes L rows from a random place, an evaluation pass the first.

    Attributes:
      directory: of the companion, in that of the set unless absolute.
      array: name of the array.
      length, width: L and C.
      dtype: of the batch, such as float16; the array is converted.
    """

    directory: str
    array: str = "features"
    length: int = limited(2304, least=1)
    width: int = limited(2048, least=1)
    dtype: str = "float32"
    name: str = "sequences"

    def spec(self) -> Spec:
        """See the class."""
        name = f"{PREFIX}{self.array}"
        return {
            name: ((self.length, self.width), np.dtype(self.dtype)),
            f"{name}_valid": ((self.length,), np.dtype(np.bool_)),
            f"{name}_start": ((), np.dtype(np.int32)),
        }

    def check(self, config: DataConfig) -> None:
        """ValueError for no directory, or a type that is no float."""
        try:
            kind = np.dtype(self.dtype).kind
        except TypeError:
            kind = ""
        if kind not in "f" or not kind:
            raise ValueError(
                f"dtype = {self.dtype!r} of the part {self.name} in config.data.parts: expected "
                "float32 or float16"
            )
        if not self.directory:
            raise ValueError(
                f"the part {self.name} in config.data.parts has no directory of a companion"
            )

    def open(self, dataset: Dataset) -> Part:
        """The sequences of a set."""
        place = directory_of(self.directory, dataset)
        check_crc = dataset.source.check_crc
        found = open_companion(place, dataset.manifest, dataset.split, check_crc=check_crc)
        return _Opened(self, found)


@dataclasses.dataclass(frozen=True)
class _Opened(Part):
    """The sequences of one set."""

    settings: Sequences
    companion: Companion

    def spec(self) -> Spec:
        return self.settings.spec()

    def identity(self) -> Mapping[str, Any]:
        settings = self.settings
        shape = {"array": settings.array, "length": settings.length, "dtype": settings.dtype}
        return {**identity_of(self.companion), **shape}

    def fill(self, reading: Reading, out: Rows) -> None:
        found, length = self._read(reading), self.settings.length
        name, rows = f"{PREFIX}{self.settings.array}", min(len(found), length)
        for row in range(len(out[name])):
            start, rng = 0, reading.generator(row, _COUNTER)
            if rng is not None and len(found) > length:
                start = int(rng.integers(len(found) - length + 1))
            out[name][row, :rows] = found[start : start + rows]
            out[name][row, rows:] = 0
            out[f"{name}_valid"][row] = np.arange(length) < rows
            out[f"{name}_start"][row] = start

    def _read(self, reading: Reading) -> np.ndarray:
        """(N, C); UnreadableRecordError where it is damaged, ValueError for another form."""
        settings = self.settings
        try:
            arrays = self.companion[reading.index]
        except CorruptRecordError as error:
            raise UnreadableRecordError(f"the features of {reading.address}: {error}") from error
        found = arrays.get(settings.array)
        if found is None or found.ndim != 2 or found.shape[1] != settings.width:
            held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ValueError(
                f"the features of {reading.address} are {held}; the part {settings.name} in "
                f"config.data.parts takes {settings.array} of (rows, {settings.width})"
            )
        return found
