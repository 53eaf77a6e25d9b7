"""Lists without a header, as the reference repositories read them.

One clip per line, columns separated by commas, semicolons or blanks, the path first (it may hold
blanks, and separators where it is in quotation marks):

===============================  ==================================================================
`path`                         test lists of UCF101; the class is the folder
`path label`                   Kinetics, UCF101, HMDB51 (for its own: `.hmdb`), Diving48
`folder frames label`          raw frames, Something-Something
`path first frames`            pre-training mixtures; a video where `frames` is negative
`path first frames label`      the same, labelled
`path total start end label`   ActivityNet, HACS; seconds
===============================  ==================================================================

`first` is the number of the first image file. The columns are told by how many numbers end the
first line; `--columns path=1,first=2,frames=3` says so instead. A negative label means none.
"""

import csv
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence

from data_pipelines.ingest import cells, hmdb
from data_pipelines.ingest.cells import MAX_SECONDS, RowError, shown
from data_pipelines.ingest.frames import DEFAULT_TEMPLATE, FrameFolder, check_template
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.rows import Listing, Row, printable
from data_pipelines.ingest.suffixes import names_media
from data_pipelines.records import split_names

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
_SPELLED = {"training": "train", "testing": "test"}
_DEFAULT_SPLIT = "train"  # nobody asked for it, so the file name may know better
_SEPARATORS = {None: "blanks", ",": "commas", ";": "semicolons"}
# Frames of a folder, and the number of the first: more is no count of images.
_MAX_FRAMES = 10_000_000


def looks_like(line: str) -> bool:
    """Whether a first line belongs to a list: it ends with a number of its own, or is a path."""
    if any(_trailing(line, separator) for separator in _SEPARATORS):
        return True
    return names_media(line) and "," not in line and ";" not in line


def read(path: str, options: IngestOptions) -> Listing:
    """Rows of a list; see `ingest.sources.read` for the errors."""
    if hmdb.is_list(path, options):
        return hmdb.read(path, options)
    base = os.path.basename(path)
    lines = _lines(path)
    if not lines:
        return Listing([], [])
    separator, columns = _layout(f"{base} line {lines[0][0]}", lines, options)
    split = (options.split == _DEFAULT_SPLIT and split_of(base)) or options.split
    reader = _Reader(
        options.root if options.root is not None else os.path.dirname(path), split, options
    )
    rows, faults = [], []
    numeric = None
    for number, line in lines:
        where = f"{base} line {number}"
        named = _named(where, line, separator, columns)
        whole = _is_number(named.get("label", "0"))
        numeric = whole if numeric is None else numeric
        if numeric and not whole:
            raise ValueError(
                f"{where}: label is {shown(named['label'])}, expected a whole number as in line "
                f"{lines[0][0]}"
            )
        try:
            rows.append(reader.row(where, named))
        except RowError as error:
            faults.append(str(error))
            rows.append(reader.rejected(where, named, str(error)))
    if len(faults) == len(rows):
        raise ValueError(faults[0])
    notes = [_describe(rows, columns, separator, split, options)]
    if columns == ("path",) and not options.columns:
        rows, note = _by_folder(rows)
        notes.append(note)
    return Listing(rows, notes)


def _describe(
    rows: Sequence[Row],
    columns: Sequence[str],
    separator: str | None,
    split: str,
    options: IngestOptions,
) -> str:
    frames = sum(row.path.startswith(FrameFolder.SCHEME) for row in rows)
    order = ", ".join(name or "(ignored)" for name in columns)
    note = (
        f"read as a {'raw-frame' if frames else 'Kinetics'} list: columns {order}, separated by "
        f"{_SEPARATORS[separator]}; split {split}"
    )
    if frames and options.frame_fps:
        template = options.frame_template or DEFAULT_TEMPLATE
        note += f"; {frames} folders of frames {template} at {options.frame_fps:g} frames/s"
    return note


def _by_folder(rows: list[Row]) -> tuple[list[Row], str]:
    """Rows of a list of paths, labelled by their folders if all of them have one."""
    folders = [os.path.basename(os.path.dirname(row.name)) for row in rows]
    if not all(folders):
        return rows, "its lines are paths without labels"
    labelled = [
        dataclasses.replace(row, labels=(folder,))
        for row, folder in zip(rows, folders, strict=True)
    ]
    return labelled, (
        "its lines are paths, so the class of a video is its folder; --columns path=1 takes no "
        "labels"
    )


def split_of(name: str) -> str | None:
    """The split a file name tells: `val` of `val.csv`, `test` of `testlist01.txt`."""
    words = [word.removesuffix("list") for word in re.split(r"[^a-z]+", name.lower())]
    found = {_SPELLED.get(word, word) for word in words if word in split_names.FOLDERS}
    return found.pop() if len(found) == 1 else None


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = cells.read_lines(file, os.path.basename(path))
            numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    return [(number, line) for number, line in numbered if line]


def _layout(
    where: str, lines: Sequence[tuple[int, str]], options: IngestOptions
) -> tuple[str | None, tuple[str, ...]]:
    """Separator (None: blanks) and column names, from the first line and the options."""
    first = lines[0][1]
    separator = next((mark for mark in ",;" if _trailing(first, mark)), None)
    if separator is None and not _trailing(first, None):
        paths = options.columns in ({}, {"path": "1"})
        if paths and all(names_media(line) for _, line in lines):
            return None, ("path",)
        # Class names instead of numbers: only a comma tells where a path with blanks ends.
        separator = next((mark for mark in ",;" if mark in first), None)
        if separator is None and options.format not in ("kinetics", "rawframes"):
            raise ValueError(
                f"{where}: expected a path and a label (and the number of frames between them for "
                f"raw frames), separated by blanks or a comma; found {shown(first)}. If the file "
                "has a header, use --format table"
            )
    numbers = _trailing(first, separator)
    if options.columns:
        return separator, _chosen(where, options.columns, numbers + 1)
    if options.format == "kinetics":
        return separator, _KINETICS
    if options.format == "rawframes" and numbers < 2:
        raise ValueError(
            f"{where}: expected 'folder frames label' for --format rawframes, found {shown(first)}"
        )
    columns = _BY_NUMBERS.get(max(1, numbers))
    if columns is None:
        raise ValueError(
            f"{where}: {numbers} numbers after the path, expected 1 to 4; name the columns, such "
            "as --columns path=1,label=2"
        )
    if columns is _RAW_FRAMES:
        ends = (_cells(line, separator, 2) for _, line in lines)
        if any(e[-1].startswith("-") and (names_media(e[0]) or e[1:2] == ["0"]) for e in ends):
            columns = _HYBRID  # -1 frames of a video; beside a folder of some it is no label
    return separator, columns


def _chosen(where: str, columns: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Names by position from `--columns path=1,frames=2`; columns without a name are ignored."""
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


class _Reader:
    """Rows out of the named cells of a line."""

    def __init__(self, root: str, split: str, options: IngestOptions):
        self._root, self._split, self._options = root, split, options

    def rejected(self, where: str, named: Mapping[str, str], problem: str) -> Row:
        """What is listed of a line that is no clip."""
        path = named["path"]
        return Row(
            path=os.path.join(self._root, path),
            name=printable(path),
            id=where,
            split=self._split,
            where=where,
            problem=problem,
        )

    def row(self, where: str, named: Mapping[str, str]) -> Row:
        """The row; RowError for times that are none."""
        path = os.path.join(self._root, named["path"])
        name = printable(named["path"])
        identity = name
        start, end = (_number(where, key, named) for key in ("start", "end"))
        if start is not None or end is not None:
            if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
                raise RowError(f"{where}: start {start} s and end {end} s are not a span of time")
            identity += f"#{start or 0:g}-" + (f"{end:g}" if end is not None else "")
        count = _count(where, "frames", named)
        if count is not None and count >= 0:
            folder = self._frames(where, path, count, named)
            # A resumed ingest compares names, so the name tells which frames are meant.
            name = f"{name}#{folder.first}+{count}"
            if "first" in named:
                identity = name
            path = folder.address()
        label = named.get("label", "")
        value = cells.number(label)
        none = not label or (value is not None and value < 0)
        return Row(
            path=path,
            name=name,
            id=identity,
            split=self._split,
            labels=() if none else (cells.text(where, "label", label),),
            start=start,
            end=end,
            where=where,
        )

    def _frames(self, where: str, path: str, count: int, named: Mapping[str, str]) -> FrameFolder:
        options = self._options
        if options.frame_fps is None:
            raise ValueError(
                f"{where}: {named['path']!r} is a folder of {count} frames, and frames carry no "
                "rate; add --frame-fps (12 for Something-Something V2 as the reference extracts "
                "it), or --format kinetics if the lines are 'path label'"
            )
        template = options.frame_template or DEFAULT_TEMPLATE
        check_template(template)
        listed = _count(where, "first", named)
        default = 1 if options.frame_start is None else options.frame_start
        return FrameFolder(
            folder=path,
            template=template,
            first=default if listed is None else listed,
            count=count,
            fps=options.frame_fps,
        )


def _named(where: str, line: str, separator: str | None, columns: Sequence[str]) -> dict[str, str]:
    found = _cells(line, separator, len(columns) - 1)
    if len(found) != len(columns) or not found[0]:
        raise ValueError(
            f"{where}: expected {', '.join(columns)} separated by "
            f"{_SEPARATORS[separator]}, found {shown(line)}"
        )
    return dict(zip(columns, found, strict=True))


def _cells(line: str, separator: str | None, count: int) -> list[str]:
    """The path of a line and its last `count` cells; -1 for all.

    A path in quotation marks ends where they do; elsewhere it takes what the others leave.
    """
    plain = [cell.strip() for cell in line.rsplit(separator, count)] if count else [line.strip()]
    if '"' not in line:
        return plain
    try:
        [quoted] = csv.reader(
            [line if separator else " ".join(line.split())],
            delimiter=separator or " ",
            skipinitialspace=True,
            strict=True,
        )
    except (csv.Error, ValueError):
        return plain
    if not separator and len(quoted) != count + 1:
        return plain  # an ordinary path with blanks and quotation marks
    if 0 <= count < len(quoted) - 1:
        # Marks within a path that is not quoted itself.
        quoted = [
            f"{separator}".join(quoted[: len(quoted) - count]),
            *quoted[len(quoted) - count :],
        ]
    return [cell.strip() for cell in quoted]


def _trailing(line: str, separator: str | None) -> int:
    """How many numbers end a line, the path not counted."""
    numbers = 0
    for cell in reversed(_cells(line, separator, -1)[1:]):
        if not _NUMBER.fullmatch(cell):
            break
        numbers += 1
    return numbers


def _is_number(label: str) -> bool:
    return cells.number(label) is not None or label.isdecimal() or label.lower() == "nan"


def _count(where: str, key: str, named: Mapping[str, str]) -> int | None:
    value = _number(where, key, named)
    if value is None:
        return None
    if abs(value) > _MAX_FRAMES:
        raise RowError(f"{where}: {key} is {shown(named[key])}, expected at most {_MAX_FRAMES}")
    if value != int(value):
        raise ValueError(f"{where}: {key} is {named[key]!r}, expected a whole number")
    return int(value)


def _number(where: str, key: str, named: Mapping[str, str]) -> float | None:
    text = named.get(key)
    if text is None:
        return None
    value = math.inf
    if len(text) <= 64:
        try:
            value = float(text)
        except ValueError as error:
            raise ValueError(f"{where}: {key} is {text!r}, expected a number") from error
    if not abs(value) <= MAX_SECONDS:
        raise RowError(f"{where}: {key} is {shown(text)}, expected a number up to {MAX_SECONDS:g}")
    return value
