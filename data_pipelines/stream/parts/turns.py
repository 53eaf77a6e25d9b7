"""The conversation about an example, one row of token ids for each turn, padded with a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import text
from data_pipelines.config import DataConfig
from data_pipelines.limits import limited
from data_pipelines.records.dataset import Dataset
from data_pipelines.stream.parts.base import Batch, Part, Reading, Rows, Spec, padded
from data_pipelines.stream.parts.text import Tokenize, ids_of, name_of


@dataclasses.dataclass(frozen=True)
class Turns(Part):
    """`turns` (M, L) int32 token ids, `turns_role` (M,) int32 the place of the role in `roles`, -1
    for padding, and `turns_valid` (M,) bool, False for padding.

    Attributes:
      tokenizer: as config.data.tokenizer.
      most, length: M and L; a record with more turns is an error, a longer turn is cut as the
        tokenizer cuts.
      roles: all that may speak.
    """

    tokenizer: str
    most: int = limited(8, least=1)
    length: int = limited(64, least=1)
    roles: Sequence[str] = ("user", "assistant")
    name: str = "turns"

    def spec(self) -> Spec:
        """See the class."""
        return {
            "turns": ((self.most, self.length), np.dtype(np.int32)),
            "turns_role": ((self.most,), np.dtype(np.int32)),
            "turns_valid": ((self.most,), np.dtype(np.bool_)),
        }

    def check(self, config: DataConfig) -> None:
        """ValueError without a tokenizer."""
        if not self.tokenizer:
            raise ValueError(f"the part {self.name} in config.data.parts has no tokenizer")

    def open(self, dataset: Dataset) -> Part:
        """The turns with their tokenizer."""
        return _Opened(self, text.make_tokenizer(self.tokenizer, self.length))


@dataclasses.dataclass(frozen=True)
class _Opened(Part):
    """The turns with their tokenizer."""

    settings: Turns
    tokenize: Tokenize

    def spec(self) -> Spec:
        return self.settings.spec()

    def identity(self) -> Mapping[str, Any]:
        tokenizer, settings = name_of(self.tokenize), self.settings
        return {"tokenizer": tokenizer, "most": settings.most, "roles": list(settings.roles)}

    def rows(self, count: int) -> Batch:
        said = np.empty((count, self.settings.most), np.object_)
        return {**super().rows(count), "turns": said}

    def fill(self, reading: Reading, out: Rows) -> None:
        found, most, roles = reading.record.turns, self.settings.most, list(self.settings.roles)
        part = f"of the part {self.settings.name} in config.data.parts"
        out["turns_valid"][:] = padded(len(found), most, "turns", reading.address, f"`most` {part}")
        out["turns"][:], out["turns_role"][:] = "", -1
        for number, turn in enumerate(found):
            if turn.role not in roles:
                raise ValueError(
                    f"{reading.address}: turn {number} is of role {turn.role!r}; `roles` {part} "
                    f"are {', '.join(roles)}"
                )
            out["turns"][:, number] = turn.text
            out["turns_role"][:, number] = roles.index(turn.role)

    def finish(self, arrays: Batch) -> Batch:
        ids = ids_of(self.tokenize, list(arrays["turns"].ravel()))
        ids = ids.reshape(*arrays["turns"].shape, -1)
        return {**arrays, "turns": np.where(arrays["turns_valid"][..., None], ids, 0)}
