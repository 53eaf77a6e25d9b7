"""Ranges of settings, declared at the field and checked wherever a config is read.

    batch: int = limited(8, least=1)

A field without a declaration has one all the same: whole numbers are not negative and fit in 64
bits, other numbers are finite. A class that gives a field another default keeps its range.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

_KEY = "limit"
_MOST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Limit:
    """Which values a field may have; None leaves an end open.

    Attributes:
      known: all values of a text; `note` explains why there are no others.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    known: tuple[str, ...] = ()
    note: str = ""

    def text(self) -> str:
        """In words: `at least 1 and less than 2`."""
        parts = [
            f"at least {self.least:g}" if self.least is not None else "",
            f"more than {self.above:g}" if self.above is not None else "",
            f"at most {self.most:g}" if self.most is not None else "",
            f"less than {self.below:g}" if self.below is not None else "",
        ]
        return " and ".join(part for part in parts if part)

    def holds(self, value: float) -> bool:
        """Whether a number is inside."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )


COUNT = Limit(least=0)  # of whole numbers that declare nothing


def limited(default: Any = dataclasses.MISSING, **ends: Any) -> Any:
    """A field of a dataclass with a range; `ends` are fields of `Limit`, none: any number."""
    return dataclasses.field(default=default, metadata={_KEY: Limit(**ends)})


def limits_of(cls: type) -> dict[str, Limit]:
    """The declared ranges of a dataclass, those of its bases included."""
    found: dict[str, Limit] = {}
    for base in reversed(cls.__mro__):
        for field in vars(base).get("__dataclass_fields__", {}).values():
            if _KEY in field.metadata:
                found[field.name] = field.metadata[_KEY]
    return found


def check_value(value: Any, limit: Limit | None, where: str) -> None:
    """ValueError for a value outside its range, at any depth of lists and mappings.

    Args:
      limit: that was declared, None without.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_value(item, limit, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            check_value(item, limit, where)
    elif isinstance(value, str):
        if limit is not None and limit.known and value not in limit.known:
            note = f" ({limit.note})" if limit.note else ""
            raise ValueError(f"{where} = {value!r}: {suggest(value, limit.known)}{note}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} = {value}: expected a finite number")
        if limit is not None and not limit.holds(value):
            raise ValueError(f"{where} = {value:g}: expected {limit.text()}")
    elif isinstance(value, int) and not isinstance(value, bool):
        if not -_MOST <= value <= _MOST:
            raise ValueError(f"{where}: expected a number of at most 64 bits, found a longer one")
        if not (limit or COUNT).holds(value):
            raise ValueError(f"{where} = {value}: expected {(limit or COUNT).text()}")


def suggest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? known: x, y, z`, for error messages."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known) or '(none)'}"
