"""Which clips of a published list a set lacks.

Lists are CSV, TSV or JSONL with a column of ids, or text with a path first in every line, as the
reference repositories publish them. A clip of the list is there if a record has its id, or its file
name without folder and ending, or, of lists with a video and its times, Kinetics' name
VIDEO_000010_000020.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.records import manifest, storage
from data_pipelines.records.dataset import open_dataset

IDS = ("id", "clip_id", "video_id", "youtube_id", "YoutubeID", "path", "video", "filename", "name")
CLASSES = ("label", "class", "category", "template")
SPLITS = ("split", "subset")
TIMES = (("time_start", "time_end"), ("start", "end"))
_ENDINGS = frozenset((".mp4", ".avi", ".webm", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v", ".flv"))
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class PublishedClip:
    """A clip of a published list: the names that it may have here, its class and split."""

    name: str
    names: tuple[str, ...]
    label: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a split holds of a list.

    Attributes:
      path, sha256: of the list.
      listed: clips of it that count.
      absent: those that no record is.
      extra: records that are none of them.
    """

    path: str
    sha256: str
    listed: tuple[PublishedClip, ...]
    absent: tuple[PublishedClip, ...]
    extra: int

    @property
    def held(self) -> int:
        """Clips that are there."""
        return len(self.listed) - len(self.absent)

    @property
    def share(self) -> float:
        """Of the list, that is missing."""
        return len(self.absent) / len(self.listed)

    def per_class(self) -> dict[str, tuple[int, int]]:
        """Class -> (missing, listed), the worst first; of lists with classes."""
        listed = Counter(clip.label for clip in self.listed if clip.label)
        absent = Counter(clip.label for clip in self.absent if clip.label)
        order = sorted(listed, key=lambda name: (-absent[name] / listed[name], name))
        return {name: (absent[name], listed[name]) for name in order}

    def summary(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "list": self.path,
            "sha256": self.sha256,
            "listed": len(self.listed),
            "held": self.held,
            "missing": len(self.absent),
            "share_missing": self.share,
            "records_not_listed": self.extra,
            "per_class": {
                name: {"missing": absent, "listed": listed}
                for name, (absent, listed) in self.per_class().items()
            },
            "missing_ids": [clip.name for clip in self.absent],
        }


def missing(directory: str, split: str, path: str, column: str = "", of_split: str = "") -> Missing:
    """Compares a split with a list.

    Args:
      column: of the ids; empty: the first of IDS that the list has.
      of_split: only rows of this split of the list; empty: rows of `split` where the list names it,
        else all.

    Raises:
      ValueError: a list that cannot be read, without ids or without a clip of that split.
    """
    found = manifest.load(directory)
    found.split(split)
    clips = list(read(path, column))
    named = {clip.split for clip in clips}
    wanted = of_split or (split if split in named else "")
    if wanted:
        clips = [clip for clip in clips if clip.split == wanted]
    if not clips:
        shown = ", ".join(sorted(filter(None, named))) or "none"
        raise ValueError(f"{path}: no clip of split {wanted!r}; splits in it: {shown}")
    held, used = _names_of_records(found, split), set()
    absent = []
    for clip in clips:
        if hit := next((held[name] for name in clip.names if name in held), None):
            used |= hit
        else:
            absent.append(clip)
    extra = found.split(split).records - len(used)
    return Missing(path, storage.sha256(path), tuple(clips), tuple(absent), extra)


def _names_of_records(found: manifest.Manifest, split: str) -> dict[str, set[int]]:
    """Name -> records that have it: their ids, whole and without folder and ending."""
    dataset, names = open_dataset(found, split), {}
    for number in range(len(dataset)):
        for name in _names(dataset.load(number).media_id):
            names.setdefault(name, set()).add(number)
    return names


def _names(text: str) -> tuple[str, ...]:
    """A name as it is, and without folder and ending."""
    stem, ending = os.path.splitext(os.path.basename(text))
    plain = stem if ending.lower() in _ENDINGS else os.path.basename(text)
    return tuple(dict.fromkeys(filter(None, (text, plain))))


def read(path: str, column: str = "") -> Iterator[PublishedClip]:
    """The clips of a list; ValueError for one that is not there or has no column of ids."""
    try:
        text = storage.read_text(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such list") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text ({error})") from error
    text = text.removeprefix("\ufeff")
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".jsonl", ".json"):
        yield from _table(path, _json_rows(path, text), column)
        return
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: is empty")
    comma = "\t" if suffix == ".tsv" else ","
    header = [each.strip() for each in next(csv.reader([lines[0]], delimiter=comma))]
    if suffix in (".csv", ".tsv") and (column in header or set(header) & {*IDS, *CLASSES}):
        yield from _table(path, csv.DictReader(lines, delimiter=comma), column)
        return
    if column:
        raise ValueError(f"{path}: has no column {column!r}; its first line is {lines[0][:80]!r}")
    for line in lines:  # `path label`, `path frames label`, or a path with commas behind it
        name, _, rest = line.strip().partition("," if suffix == ".csv" and "," in line else " ")
        folder = os.path.basename(os.path.dirname(name))
        label = folder or rest.split(" ")[-1]
        yield PublishedClip(name, _names(name), label)


def _json_rows(path: str, text: str) -> Sequence[Mapping[str, Any]]:
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON list, nor one object a line: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected objects with a column of ids in every row")
    return rows


def _table(path: str, rows: Any, column: str) -> Iterator[PublishedClip]:
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path}: lists nothing")
    known = [str(name) for name in rows[0] if name is not None]
    wanted = column or next((name for name in IDS if name in known), "")
    if wanted not in known:
        raise ValueError(
            f"{path}: has no column {column!r}; found {', '.join(known)}"
            if column
            else f"{path}: has none of the columns {', '.join(IDS)}; found {', '.join(known)}; "
            "name that of the ids as --column"
        )
    times = next((pair for pair in TIMES if set(pair) <= set(known)), None)
    label, split = (
        next((name for name in names if name in known), "") for names in (CLASSES, SPLITS)
    )
    for number, row in enumerate(rows, 1):
        name = str(row.get(wanted) or "").strip()
        if not name:
            raise ValueError(f"{path}: row {number} has no {wanted}")
        names = _names(name)
        if times and (named := _kinetics(names[-1], row, times)):
            names = (named,)  # clips of one video are not each other
        yield PublishedClip(
            names[0], names, str(row.get(label) or "") if label else "",
            str(row.get(split) or "") if split else "",
        )  # fmt: skip


def _kinetics(video: str, row: Mapping[str, Any], times: tuple[str, str]) -> str:
    """`VIDEO_000010_000020`; empty where the times are no numbers."""
    try:
        begin, end = (float(row[name]) for name in times)
    except (TypeError, ValueError):
        return ""
    return f"{video}_{begin:06.0f}_{end:06.0f}"


def lines(found: Missing, split: str) -> Iterator[str]:
    """What a person is told."""
    yield (
        f"{found.held} of {len(found.listed)} clips of {found.path} are in split {split}, "
        f"{len(found.absent)} missing ({100 * found.share:.1f} %); {found.extra} records are not "
        "in the list"
    )
    classes = [item for item in found.per_class().items() if item[1][0]]
    for name, (absent, listed) in classes[:_SHOWN]:
        yield f"  {name}: {absent} of {listed} missing"
    if len(classes) > _SHOWN:
        yield f"  and {len(classes) - _SHOWN} more classes"
    for clip in found.absent[:_SHOWN] if not classes else ():
        yield f"  missing: {clip.name}"
