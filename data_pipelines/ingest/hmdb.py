"""HMDB51's own lists: one file per class and split, `CLASS_test_split1.txt`.

A line is `NAME.avi N`, where N says what the video is for in that split: 1 training, 2 test,
0 neither. Read as `path label` N would be the class. Named is one file; those of the other
classes beside it belong to the same split and are read with it.
"""

import os
import re

from data_pipelines.ingest import cells
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.rows import Listing, Row, printable

_NAME = re.compile(r"(.+)_test_split([123])\.txt")
_LINE = re.compile(r"(\S.*?)\s+([012])\s*")
_SPLITS = {"1": "train", "2": "test"}


def is_list(path: str, options: IngestOptions) -> bool:
    """Whether a file is one of these lists, unless the options say how to read it."""
    if options.format != "auto" or options.columns or not _NAME.fullmatch(os.path.basename(path)):
        return False
    lines = _lines(path)
    return bool(lines) and all(_LINE.fullmatch(line) for _, line in lines)


def read(path: str, options: IngestOptions) -> Listing:
    """The videos of all classes of a split; ValueError for a line of another kind."""
    folder, base = os.path.split(path)
    number = base[-5]
    root = options.root if options.root is not None else folder
    rows, unused, classes = [], 0, 0
    for name in sorted(os.listdir(folder or ".")):
        match = _NAME.fullmatch(name)
        if not match or match[2] != number:
            continue
        classes += 1
        inside = match[1] if os.path.isdir(os.path.join(root, match[1])) else ""
        for line_number, line in _lines(os.path.join(folder, name)):
            where = f"{name} line {line_number}"
            found = _LINE.fullmatch(line)
            if not found:
                raise ValueError(
                    f"{where}: expected 'NAME.avi N' with N 0, 1 or 2 as in HMDB51's lists, found "
                    f"{cells.shown(line)}"
                )
            if found[2] not in _SPLITS:
                unused += 1
                continue
            file = os.path.join(inside, found[1])
            rows.append(
                Row(
                    path=os.path.join(root, file),
                    name=printable(file),
                    id=printable(f"{match[1]}/{found[1]}"),
                    split=_SPLITS[found[2]],
                    labels=(cells.text(where, "label", match[1]),),
                    where=where,
                )
            )
    note = (
        f"read as split {number} of HMDB51: {classes} files *_test_split{number}.txt, 1 is train, "
        f"2 is test; {unused} videos that are neither are left out"
    )
    return Listing(rows, [note])


def _lines(path: str) -> list[tuple[int, str]]:
    base = os.path.basename(path)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        numbered = [
            (number, line.strip()) for number, line in enumerate(cells.read_lines(file, base), 1)
        ]
    return [(number, line) for number, line in numbered if line]
