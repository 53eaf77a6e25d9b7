"""The class list of a dataset, and which rows do not fit it."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from data_pipelines.ingest import cells, class_files
from data_pipelines.ingest.class_files import ClassList
from data_pipelines.ingest.rows import Row

# Above this a column of integers holds ids, not class indices.
_MAX_INDEX = 100_000
# Labels that are looked up among the classes for a hint, and how long they may be.
_HINTS, _MAX_NAME = 100, 200


@dataclass(slots=True)
class _Meaning:
    """What each label of a source stands for.

    Attributes:
      names: label -> class name; "" for what marks a row without a label, such as -1.
      wrong: label -> why it is none.
    """

    names: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


def resolve(
    rows: list[Row],
    classes_file: str | None,
    listed: tuple[str, ...] = (),
    notes: list[str] | None = None,
) -> tuple[list[Row], tuple[str, ...]]:
    """Fix the class list; the position of a name is the index stored in the records.

    Without a file the classes are those the source `listed`, or else the sorted labels of all
    rows, those of segments and boxes included. Labels that are all numbers keep their value: they
    are the numbers of the file, or the positions of its names from 0, or become the classes "0"
    to "N-1". 2.0 is 2, a negative number is no label, and other numbers are none of a class.

    Args:
      notes: what looks odd is added here, one sentence each.

    Returns:
      The rows, those that cannot be labelled with their `problem` set, and the class names.

    Raises:
      ValueError: an unreadable class file, a file that knows none of the labels or counts
        otherwise than they do, or integers too large for class indices.
    """
    notes = [] if notes is None else notes
    used = sorted({label for row in rows for label in _labels(row)})
    numbers = {label: cells.number(label) for label in used}
    given = class_files.read(classes_file) if classes_file is not None else ClassList(listed)
    known = _known(given.names)
    numeric = _numeric(numbers)
    as_names = {k: str(value) for k, value in numbers.items() if value is not None and numeric}
    if not numeric or not known.isdisjoint((*map(_plain, used), *as_names.values())):
        # A class list may hold digits as names.
        meaning, classes = _by_name(numbers, given.names, as_names)
    elif given.names:
        classes = given.names
        meaning = _by_number(numbers, _first(numbers, given, classes_file, notes), classes)
    else:
        meaning, classes = _as_classes(numbers, notes)
    if given.names and not any(meaning.names.values()) and len(meaning.names) < len(used):
        raise ValueError(
            f"{classes_file or 'the source'}: knows none of the labels of the source; it has "
            f"{_some(classes)}, the source has {_some(used)}"
        )
    _explain(meaning, used, classes)
    rows = [_map(row, meaning) for row in rows]
    labelled = Counter(row.split for row in rows if row.labels)
    return [_require_label(row, labelled[row.split]) for row in rows], classes


def _labels(row: Row) -> list[str]:
    """All class names of a row: of the clip, its segments and its boxes."""
    return [
        *row.labels,
        *(segment.label for segment in row.segments if segment.label),
        *(label for box in row.boxes for label in box.labels),
    ]


def _plain(name: str) -> str:
    """Something-Something's templates have brackets in one file and none in the other."""
    return name.replace("[", "").replace("]", "")


def _known(names: Sequence[str]) -> set[str]:
    return {_plain(name) for name in names}


def _numeric(numbers: Mapping[str, int | float | None]) -> bool:
    """Whether the labels are numbers; NaN among them is an empty cell."""
    return any(value is not None for value in numbers.values()) and all(
        value is not None or _is_nan(label) for label, value in numbers.items()
    )


def _is_nan(label: str) -> bool:
    return label.lower() == "nan"


def _is_none(label: str, value: int | float | None) -> bool:
    """Whether a label marks a row without one: -1 in lists, NaN in a column of numbers."""
    return _is_nan(label) if value is None else value < 0


def _by_name(
    numbers: Mapping[str, int | float | None], names: tuple[str, ...], as_names: Mapping[str, str]
) -> tuple[_Meaning, tuple[str, ...]]:
    """Labels are names: those of a list, or all there are."""
    meaning = _Meaning()
    if not names:
        # -1 beside names is no class.
        for label, value in numbers.items():
            meaning.names[label] = "" if value is not None and value < 0 else label
        return meaning, tuple(name for name in meaning.names.values() if name)
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(_plain(name), name)
    exact = set(names)
    for label, value in numbers.items():
        found = label if label in exact else spelled.get(_plain(as_names.get(label, label)))
        if found is not None:
            meaning.names[label] = found
        elif value is not None and value < 0:
            meaning.names[label] = ""
    return meaning, names


def _as_classes(
    numbers: Mapping[str, int | float | None], notes: list[str]
) -> tuple[_Meaning, tuple[str, ...]]:
    """Numbers without names: the classes "0" to the largest."""
    whole = _whole(numbers)
    if not whole and any(value is not None and value >= 0 for value in numbers.values()):
        raise ValueError(
            f"labels are numbers such as {_some(list(numbers))}, of which none is whole; use "
            "names, or give the class list with --classes"
        )
    largest = max(whole, default=-1)
    outsize = next((n for n in numbers.values() if n is not None and n >= _MAX_INDEX), None)
    if outsize is not None:
        largest = max(n for n in numbers.values() if n is not None)
        raise ValueError(
            f"labels are integers up to {cells.shown(largest)}, too large for class indices (limit "
            f"{_MAX_INDEX}); use names, or give the class list with --classes"
        )
    if whole and min(whole) > 0:
        notes.append(
            f"no row has the label 0 (they go from {min(whole)} to {largest}), and labels keep "
            "their value, so class '0' is empty. If the source counts from 1, name its class list "
            "with --classes, lines such as '1 NAME'"
        )
    classes = tuple(str(i) for i in range(largest + 1))
    return _by_number(numbers, 0, classes), classes


def _whole(numbers: Mapping[str, int | float | None]) -> set[int]:
    return {value for value in numbers.values() if isinstance(value, int) and value >= 0}


def _first(
    numbers: Mapping[str, int | float | None],
    given: ClassList,
    classes_file: str | None,
    notes: list[str],
) -> int:
    """The number by which the labels of the source call the first class; 0 or 1.

    Raises:
      ValueError: the labels begin at 1 and the names have no numbers, or at 0 and at 1 at once.
    """
    whole, count = _whole(numbers), len(given.names)
    zero, beyond = 0 in whole, max(whole, default=0) == count
    if given.first == 1:
        if not zero:
            return 1
        if beyond:
            raise ValueError(
                f"{classes_file}: numbers its {count} classes from 1, and the labels of the source "
                f"go from 0 to {count}; expected 1 to {count}"
            )
        notes.append(
            f"the labels of the source begin at 0 and the numbers of {classes_file} at 1: label 0 "
            f"is taken for {given.names[0]!r}"
        )
        return 0
    if beyond and not zero:
        raise ValueError(
            f"{classes_file or 'the source'}: the labels go from {min(whole)} to {count} and no "
            f"row has 0, while the {count} classes are counted from 0: the labels begin at 1. "
            f"Number the lines of the class list, '1 {given.names[0]}' and so on, or subtract 1 "
            "from the labels"
        )
    return 0


def _by_number(
    numbers: Mapping[str, int | float | None], first: int, classes: tuple[str, ...]
) -> _Meaning:
    meaning = _Meaning()
    for label, value in numbers.items():
        if _is_none(label, value):
            meaning.names[label] = ""
        elif not isinstance(value, int):
            meaning.wrong[label] = f"label {cells.shown(label)} is not a whole number"
        elif first <= value < first + len(classes):
            meaning.names[label] = classes[value - first]
    return meaning


def _explain(meaning: _Meaning, used: Sequence[str], classes: tuple[str, ...]) -> None:
    """Say of every label that is none why; looking for near names takes milliseconds each."""
    for label in used:
        if label in meaning.names or label in meaning.wrong:
            continue
        short = len(meaning.wrong) < _HINTS and len(label) < _MAX_NAME
        near = difflib.get_close_matches(label, classes, n=1) if short else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        meaning.wrong[label] = (
            f"label {cells.shown(label)} is not one of the {len(classes)} classes{hint}"
        )


def _map(row: Row, meaning: _Meaning) -> Row:
    """The row under the names of the class list."""
    if row.problem:
        return row
    names = meaning.names
    wrong = next((label for label in _labels(row) if label in meaning.wrong), None)
    if wrong is not None:
        return replace(row, problem=f"{row.where}: {meaning.wrong[wrong]}")
    # A label listed twice is one label.
    found = dict.fromkeys(names[label] for label in row.labels)
    return replace(
        row,
        labels=tuple(name for name in found if name),
        segments=tuple(s._replace(label=names.get(s.label, "")) for s in row.segments),
        boxes=tuple(
            b._replace(labels=tuple(names[label] for label in b.labels if names[label]))
            for b in row.boxes
        ),
    )


def _require_label(row: Row, labelled: int) -> Row:
    if row.problem or row.labels or not labelled:
        return row
    return replace(
        row, problem=f"{row.where}: has no label, while {labelled} rows of split {row.split} do"
    )


def read_classes(path: str) -> tuple[str, ...]:
    """The names of a class list in any form of `ingest.class_files`."""
    return class_files.read(path).names


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(cells.shown(name) for name in names[:5])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
