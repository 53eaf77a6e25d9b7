"""Lists without a header, as the reference repositories read them.

One clip per line, columns separated by commas or blanks, the path first (it may hold blanks):

===============================  ==================================================================
``path label``                   Kinetics, UCF101, HMDB51, Diving48
``folder frames label``          raw frames, Something-Something
``path first frames``            pre-training mixtures; a video where ``frames`` is negative
``path first frames label``      the same, labelled
``path total start end label``   ActivityNet, HACS; seconds
===============================  ==================================================================

``first`` is the number of the first image file. The columns are told by how many numbers end the
first line; ``--columns path=1,first=2,frames=3`` says so instead. A negative label means none.
"""

import os
import re
from collections.abc import Mapping, Sequence

from data_pipelines.ingest.frames import DEFAULT_TEMPLATE, FrameFolder, check_template
from data_pipelines.ingest.options import Options
from data_pipelines.ingest.rows import Listing, Row, printable

SUFFIXES = (".csv", ".txt", ".list", ".lst", "")
COLUMNS = ("path", "label", "first", "frames", "start", "end")

_KINETICS = ("path", "label")
_RAW_FRAMES = ("path", "frames", "label")
_HYBRID = ("path", "first", "frames")
_BY_NUMBERS: Mapping[int, tuple[str, ...]] = {
    1: _KINETICS,
    2: _RAW_FRAMES,
    3: ("path", "first", "frames", "label"),
    4: ("path", "total", "start", "end", "label"),
}
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
_WHOLE = re.compile(r"-?\d+")
_DEFAULT_SPLIT = "train"  # nobody asked for it, so the file name may know better
_SPLITS = frozenset(("train", "val", "valid", "validation", "test"))


def looks_like(line: str) -> bool:
    """Whether a first line belongs to a list: it ends with a number of its own."""
    return bool(_NUMBER.fullmatch(_tail(line, ",", 1)[-1]) or _trailing(line, None))


def read(path: str, options: Options) -> Listing:
    """Rows of a list; see :func:`data_pipelines.ingest.sources.read` for the errors."""
    base = os.path.basename(path)
    lines = _lines(path)
    if not lines:
        return Listing([], [])
    separator, columns = _layout(f"{base} line {lines[0][0]}", lines, options)
    root = options.root if options.root is not None else os.path.dirname(path)
    split = (options.split == _DEFAULT_SPLIT and split_of(base)) or options.split
    rows = []
    numeric = None
    for number, line in lines:
        where = f"{base} line {number}"
        cells = _tail(line, separator, len(columns) - 1)
        if len(cells) != len(columns) or not cells[0]:
            raise ValueError(
                f"{where}: expected {', '.join(columns)} separated by "
                f"{_name(separator)}, found {line!r}"
            )
        named = dict(zip(columns, cells, strict=True))
        whole = _WHOLE.fullmatch(named.get("label", "0")) is not None
        numeric = whole if numeric is None else numeric
        if numeric and not whole:
            raise ValueError(
                f"{where}: label is {named['label']!r}, expected a whole number as in line "
                f"{lines[0][0]}"
            )
        rows.append(_row(where, named, root, split, options))
    frames = sum(row.path.startswith(FrameFolder.SCHEME) for row in rows)
    order = ", ".join(name or "(ignored)" for name in columns)
    note = (
        f"read as a {'raw-frame' if frames else 'Kinetics'} list: columns {order}, separated by "
        f"{_name(separator)}; split {split}"
    )
    if frames:
        template = options.frame_template or DEFAULT_TEMPLATE
        note += f"; {frames} folders of frames {template} at {options.frame_fps:g} frames/s"
    return Listing(rows, [note])


def split_of(name: str) -> str | None:
    """The split a file name tells: ``val`` of ``val.csv`` or ``k400_val_list.txt``."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS]
    return words[0] if len(set(words)) == 1 else None


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            numbered = [(number, line.strip()) for number, line in enumerate(file, start=1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    return [(number, line) for number, line in numbered if line]


def _layout(
    where: str, lines: Sequence[tuple[int, str]], options: Options
) -> tuple[str | None, tuple[str, ...]]:
    """Separator (None: blanks) and column names, from the first line and the options."""
    first = lines[0][1]
    comma = bool(_NUMBER.fullmatch(_tail(first, ",", 1)[-1]))
    if not comma and not _trailing(first, None):
        # Class names instead of numbers: only a comma tells where a path with blanks ends.
        comma = "," in first
        if not comma and options.format not in ("kinetics", "rawframes"):
            raise ValueError(
                f"{where}: expected a path and a label (and the number of frames between them for "
                f"raw frames), separated by blanks or a comma; found {first!r}. If the file has a "
                "header, use --format table"
            )
    separator = "," if comma else None
    numbers = _trailing(first, separator)
    if options.columns:
        return separator, _chosen(where, options.columns, numbers + 1)
    if options.format == "kinetics":
        return separator, _KINETICS
    if options.format == "rawframes" and numbers < 2:
        raise ValueError(
            f"{where}: expected 'folder frames label' for --format rawframes, found {first!r}"
        )
    columns = _BY_NUMBERS.get(max(1, numbers))
    if columns is None:
        raise ValueError(
            f"{where}: {numbers} numbers after the path, expected 1 to 4; name the columns, such "
            "as --columns path=1,label=2"
        )
    if columns is _RAW_FRAMES:
        last = (_tail(line, separator, 1)[-1] for _, line in lines)
        if any(cell.startswith("-") for cell in last):
            columns = _HYBRID  # a class is never negative
    return separator, columns


def _chosen(where: str, columns: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Names by position from ``--columns path=1,frames=2``; columns without a name are ignored."""
    positions: dict[int, str] = {}
    for ours, number in columns.items():
        if ours not in COLUMNS or not re.fullmatch(r"[1-9]\d?", number):
            raise ValueError(
                f"{where}: --columns {ours}={number}; a list has no header, so give numbers from 1 "
                f"for {', '.join(COLUMNS)}"
            )
        positions[int(number)] = ours
    if positions.get(1) != "path" or len(positions) != len(columns):
        raise ValueError(
            f"{where}: --columns must have path=1 and every number once, since only the first "
            "column may contain the separator"
        )
    if "first" in columns and "frames" not in columns:
        raise ValueError(f"{where}: --columns has 'first' but not 'frames'")
    return tuple(positions.get(i, "") for i in range(1, max(count, *positions) + 1))


def _row(where: str, cells: Mapping[str, str], root: str, split: str, options: Options) -> Row:
    path = os.path.join(root, cells["path"])
    name = printable(cells["path"])
    identity = name
    start, end = (_number(where, key, cells) for key in ("start", "end"))
    if start is not None or end is not None:
        if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
            raise ValueError(f"{where}: start {start} s and end {end} s are not a span of time")
        identity += f"#{start or 0:g}-" + (f"{end:g}" if end is not None else "")
    count = _count(where, "frames", cells)
    if count is not None and count >= 0:
        if options.frame_fps is None:
            raise ValueError(
                f"{where}: {cells['path']!r} is a folder of {count} frames, and frames carry no "
                "rate; add --frame-fps (12 for Something-Something V2 as the reference extracts "
                "it), or --format kinetics if the lines are 'path label'"
            )
        template = options.frame_template or DEFAULT_TEMPLATE
        check_template(template)
        listed = _count(where, "first", cells)
        default = 1 if options.frame_start is None else options.frame_start
        first = default if listed is None else listed
        # A resumed ingest compares names, so the name tells which frames are meant.
        name = f"{name}#{first}+{count}"
        if listed is not None:
            identity = name
        folder = FrameFolder(
            folder=path,
            template=template,
            first=first,
            count=count,
            fps=options.frame_fps,
        )
        path = folder.address()
    label = cells.get("label", "")
    return Row(
        path=path,
        name=name,
        id=identity,
        split=split,
        labels=(printable(label),) if label and not label.startswith("-") else (),
        start=start,
        end=end,
        where=where,
    )


def _tail(line: str, separator: str | None, count: int) -> list[str]:
    return [cell.strip() for cell in line.rsplit(separator, count)]


def _trailing(line: str, separator: str | None) -> int:
    """How many numbers end a line, the path not counted."""
    cells = _tail(line, separator, -1)[1:]
    numbers = 0
    for cell in reversed(cells):
        if not _NUMBER.fullmatch(cell):
            break
        numbers += 1
    return numbers


def _count(where: str, key: str, cells: Mapping[str, str]) -> int | None:
    value = _number(where, key, cells)
    if value is not None and value != int(value):
        raise ValueError(f"{where}: {key} is {cells[key]!r}, expected a whole number")
    return None if value is None else int(value)


def _number(where: str, key: str, cells: Mapping[str, str]) -> float | None:
    text = cells.get(key)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{where}: {key} is {text!r}, expected a number")
    return float(text)


def _name(separator: str | None) -> str:
    return "blanks" if separator is None else "commas"
