"""Which rows of a checkpoint's head belong to which class of the data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.stream.identity import class_difference

HEAD = ("head/kernel", "head/bias")  # of a classifier; the classes are the last axis
CHOICES = ("fresh", "names", "first")
ABSENT = -1  # in place of a row: the class has none
SHOWN = 5  # names in a message


@dataclasses.dataclass(frozen=True)
class HeadRows:
    """Attributes:
    rows: (K,) int64, for each class of the data the row of the source or ABSENT.
    absent: the classes without a row, by name where known.
    note: a line for the report.
    """

    rows: np.ndarray
    absent: tuple[str, ...]
    note: str

    @property
    def fresh(self) -> bool:
        """Whether nothing of the source's head is taken."""
        return bool((self.rows == ABSENT).all())

    def take(self, source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        """The source's rows where there are any: (..., M) and (..., K) -> (..., K)."""
        return np.where(self.rows == ABSENT, initial, source[..., self.rows])


def head_rows(
    choice: str, *, count: int, names: Sequence[str], wanted: int, classes: Sequence[str]
) -> HeadRows:
    """The rows of a head of `count` classes that a head of `wanted` classes starts from.

    Args:
      choice: config.head_rows.
        "": all rows where the classes are the same, none where their number is another.
        fresh: none.
        names: the row of the class of the same name.
        first: the first `wanted` rows, as InternVideo1 and UniFormerV2 make a Kinetics-400 head
          from one for Kinetics-710.
        A path: a JSON list, or a text file with one entry a line. Either `wanted` integers, row i
          is row idx[i] of the source (VideoMAE V2's `label_710to400.json` and the lists for
          Kinetics-600 and 700 are of this form), or `count` strings, the names of the source's
          classes, which are then matched by name.
      names: of the source's classes; empty: not known, then only the number is checked.
      classes: of the data, in the order of the labels; empty: not known.

    Raises:
      ValueError: the classes differ and `choice` does not say what to do, or cannot be followed.
    """
    taken = f"all {count} rows"
    if choice not in ("", *CHOICES):
        listed = _read_list(choice)
        if isinstance(listed[0], int):
            return _listed(choice, [int(row) for row in listed], count, wanted)
        if len(listed) != count:
            raise ValueError(
                f"config.head_rows = {choice!r} has {len(listed)} class names, the head of the "
                f"checkpoint has {count} classes"
            )
        choice, names = "names", [str(name) for name in listed]
    if choice == "fresh" or (choice == "" and count != wanted):
        note = "fresh, as config.head_rows says"
        if choice == "":
            known = names and classes
            difference = class_difference(classes, names, "the checkpoint") if known else ""
            difference = difference or f"{wanted} classes in the data, {count} in the checkpoint"
            note = f"fresh: {difference} (config.head_rows says which rows to keep)"
        return HeadRows(np.full(wanted, ABSENT), tuple(classes), note)
    if choice == "names" and names and classes:
        return _by_name(names, classes)
    if choice == "names" and count != wanted:
        whose = "the data" if names else "the checkpoint"
        raise ValueError(
            f"config.head_rows = 'names', but {whose} has no class names; set it to a file with "
            f"the {count} class names of the checkpoint in the order of its head, or with {wanted} "
            "row numbers, or to first or fresh"
        )
    if choice == "first":
        if count < wanted:
            raise ValueError(
                f"config.head_rows = 'first' needs {wanted} rows, the head of the checkpoint has "
                f"{count}; set it to names, fresh, or a file of row numbers"
            )
        names, taken = names[:wanted], f"the first {wanted} of {count} rows"
    if names and classes and (difference := class_difference(classes, names, "the checkpoint")):
        raise ValueError(
            f"the classes of the data are not those of the checkpoint's head: {difference}. Give "
            "the data with that class list, or set config.head_rows: names takes the row of the "
            "same name, fresh starts the head anew, a file of row numbers says it for each class"
        )
    return HeadRows(np.arange(wanted), (), taken)


def _by_name(names: Sequence[str], classes: Sequence[str]) -> HeadRows:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"config.head_rows: {twice[0]!r} is the name of {names.count(twice[0])} classes of the "
            "checkpoint; give row numbers instead"
        )
    number = {name: i for i, name in enumerate(names)}
    rows = np.array([number.get(name, ABSENT) for name in classes])
    absent = tuple(name for name in classes if name not in number)
    if len(absent) == len(classes):
        difference = class_difference(classes, names, "the checkpoint")
        raise ValueError(
            f"config.head_rows = 'names', but no class of the data is one of the checkpoint: "
            f"{difference}. Set it to fresh, or to a file of row numbers or class names"
        )
    note = f"{len(classes) - len(absent)} of {len(classes)} rows by name, from {len(names)}"
    return HeadRows(rows, absent, note + (f"; fresh: {some(absent)}" if absent else ""))


def _listed(path: str, rows: Sequence[int], count: int, wanted: int) -> HeadRows:
    if len(rows) != wanted:
        raise ValueError(
            f"config.head_rows = {path!r} has {len(rows)} row numbers, the data has {wanted} "
            "classes; expected one for each"
        )
    outside = [(i, row) for i, row in enumerate(rows) if not 0 <= row < count]
    if outside:
        i, row = outside[0]
        raise ValueError(
            f"config.head_rows = {path!r}: entry {i} is {row}, the checkpoint's head has rows 0 to "
            f"{count - 1}"
        )
    return HeadRows(np.array(rows), (), f"{wanted} of {count} rows by {path}")


def _read_list(path: str) -> list[int] | list[str]:
    """The entries of a list file, all integers or all strings."""
    place = Path(path)
    if not place.is_file():
        raise ValueError(
            f"config.head_rows = {path!r} is no file; expected {', '.join(CHOICES)}, nothing, or "
            "a list of row numbers or class names (JSON, or one a line)"
        )
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".json":
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise ValueError(f"config.head_rows = {path!r} is no JSON: {error}") from error
    else:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
        if all(entry.isdecimal() for entry in entries):
            entries = [int(entry) for entry in entries]
    kinds = {type(entry) for entry in entries} if isinstance(entries, list) else set()
    if kinds not in ({int}, {str}):
        raise ValueError(
            f"config.head_rows = {path!r}: expected a list of row numbers or one of class names, "
            f"found {type(entries).__name__} of {sorted(kind.__name__ for kind in kinds)}"
        )
    return entries


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more
