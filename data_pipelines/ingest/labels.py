"""The class list of a dataset, and which rows do not fit it."""

import difflib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from data_pipelines.ingest.rows import Row

# Above this a column of integers holds ids, not class indices.
_MAX_INDEX = 100_000

_INDEX = re.compile(r"0|[1-9]\d*")


def resolve(
    rows: list[Row], classes_file: str | None, listed: tuple[str, ...] = ()
) -> tuple[list[Row], tuple[str, ...]]:
    """Fix the class list; the position of a name is the index stored in the records.

    Without a file the classes are those the source ``listed``, or else the sorted labels of all
    rows, those of segments and boxes included. Labels that are all integers
    keep their value: they index the file's names, or become the classes "0" to "N-1".

    Returns:
      The rows, those that cannot be labelled with their ``problem`` set, and the class names.

    Raises:
      ValueError: an unreadable class file, a file that knows none of the labels, or integers too
        large for class indices.
    """
    used = sorted({label for row in rows for label in _labels(row)})
    integers = bool(used) and all(_INDEX.fullmatch(label) for label in used)
    if classes_file is not None:
        classes = read_classes(classes_file)
    elif listed:
        classes = listed
    elif integers:
        largest = max(int(label) for label in used)
        if largest >= _MAX_INDEX:
            raise ValueError(
                f"labels are integers up to {largest}, too large for class indices (limit "
                f"{_MAX_INDEX}); use names, or give the class list with --classes"
            )
        classes = tuple(str(i) for i in range(largest + 1))
    else:
        classes = tuple(used)
    known = set(classes)
    if integers and not known.intersection(used):
        names = {label: classes[int(label)] for label in used if int(label) < len(classes)}
    else:
        names = {label: label for label in used if label in known}
    if used and not names:
        raise ValueError(
            f"{classes_file}: knows none of the labels of the source; it has "
            f"{_some(classes)}, the source has {_some(used)}"
        )
    labelled = Counter(row.split for row in rows if row.labels)
    return [_fit(row, names, classes, labelled[row.split]) for row in rows], classes


def _labels(row: Row) -> list[str]:
    """All class names of a row: of the clip, its segments and its boxes."""
    return [
        *row.labels,
        *(segment.label for segment in row.segments if segment.label),
        *(label for box in row.boxes for label in box.labels),
    ]


def _fit(row: Row, names: dict[str, str], classes: tuple[str, ...], labelled: int) -> Row:
    if row.problem:
        return row
    if not row.labels and labelled:
        return replace(
            row,
            problem=f"{row.where}: has no label, while {labelled} rows of split {row.split} do",
        )
    unknown = [label for label in _labels(row) if label not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return replace(
            row,
            problem=f"{row.where}: label {unknown[0]!r} is not one of the {len(classes)} "
            f"classes{hint}",
        )
    # A label listed twice is one label.
    return replace(
        row,
        labels=tuple(dict.fromkeys(names[label] for label in row.labels)),
        segments=tuple(s._replace(label=names.get(s.label, "")) for s in row.segments),
        boxes=tuple(b._replace(labels=tuple(names[n] for n in b.labels)) for b in row.boxes),
    )


def read_classes(path: str) -> tuple[str, ...]:
    """Class names from a JSON list or a text file with one name per line."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        names = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--classes {path}: no such file") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not a readable class list ({error})") from error
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a JSON list of names, or one name per line")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ValueError(f"{path}: lists no classes")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: lists class {twice[0]!r} twice")
    return tuple(names)


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
