"""The rows of CSV, TSV, JSONL and JSON files as they are written: where, and column -> value.

What is wrong with the file (quotation marks, number of cells, JSON) is a ValueError with the line;
what is wrong with the values is not looked at here.
"""

import csv
import json
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from data_pipelines.ingest import cells
from data_pipelines.ingest.suffixes import names_media

# What a JSON list calls the file: video sets and image sets of the reference repositories.
_MEDIA_KEYS = ("path", "video", "image")
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}

Lines = Iterator[tuple[str, dict[str, Any]]]


def header(line: str, path: str, wanted: Collection[str]) -> tuple[list[str], str]:
    """The column names of a first line, and what separates them.

    Of comma, tab and semicolon the one that gives the most columns that are wanted, then the most
    names of files (a list without header); if none does, the tab in a .tsv, otherwise the comma.
    """
    usual = "\t" if path.lower().endswith(".tsv") else ","
    names, chosen, best = list[str](), usual, (-1, 0)
    for separator in dict.fromkeys((usual, *_SEPARATORS)):
        try:
            found = [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]
        except csv.Error:
            continue
        score = len(set(found).intersection(wanted)), sum(map(names_media, found))
        if score > best:
            names, chosen, best = found, separator, score
    return names, chosen


def read_csv(path: str, wanted: Collection[str], notes: list[str]) -> Lines:
    """Rows of a table with a header; cells are texts without blanks around them, None if empty.

    Args:
      wanted: names that columns may have, by which the separator is known.
      notes: what looks odd is added here.
    """
    base = os.path.basename(path)
    begun, first_long, long = 1, "", 0
    csv.field_size_limit(cells.MAX_LINE)
    try:
        # utf-8-sig: spreadsheets put a byte order mark first.
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = cells.read_lines(file, base)
            counted = enumerate(lines, start=1)
            above, first = next((pair for pair in counted if pair[1].strip()), (1, ""))
            names, separator = header(first, path, wanted)
            _check_header(path, names, separator)
            if separator != ("\t" if path.lower().endswith(".tsv") else ","):
                notes.append(f"{base}: its columns are separated by {_SEPARATORS[separator]}")
            reader = csv.reader(lines, delimiter=separator, strict=True)
            begun = above + 1
            for row in reader:
                where, end = f"{base} line {begun}", reader.line_num + above
                long, first_long = _count_long(begun, end, long, first_long)
                begun = end + 1
                if not any(row):
                    continue
                if len(row) != len(names):
                    raise ValueError(
                        f"{where}: {len(row)} cells, the header has {len(names)}; put cells "
                        "that contain the separator into double quotes"
                    )
                yield where, {k: v.strip() or None for k, v in zip(names, row, strict=True)}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(
            f"{base} line {begun}: is not readable CSV ({error}). A cell that begins with a "
            "quotation mark ends with one, and those inside it are doubled"
        ) from error
    if long:
        notes.append(
            f"{long} rows of {base} have line breaks inside quotation marks, the first in "
            f"{first_long}: make sure that none was forgotten"
        )


def _count_long(begun: int, end: int, count: int, first: str) -> tuple[int, str]:
    if end == begun:
        return count, first
    return count + 1, first or f"lines {begun} to {end}"


def _check_header(path: str, names: list[str], separator: str) -> None:
    if not any(names):
        raise ValueError(f"{path}: is empty; expected a header line with a column 'path'")
    file = next((name for name in names if names_media(name)), None)
    if file is not None:
        raise ValueError(
            f"{os.path.basename(path)} line 1: {cells.shown(file)} is a file, not the name of a "
            "column, so the file has no header. If the lines are a path and a label, add --format "
            f"kinetics; otherwise write the names first, such as path{separator}label"
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: has two columns named {cells.shown(twice[0])}")


def read_jsonl(path: str) -> Lines:
    """Rows of one JSON object per line."""
    base = os.path.basename(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(cells.read_lines(file, base), start=1):
                where = f"{base} line {number}"
                if not line.strip():
                    continue
                values = cells.parse_json(f"{where}:", line)
                if not isinstance(values, dict):
                    raise ValueError(
                        f"{where}: is a {type(values).__name__}, expected an object with 'path'"
                    )
                yield where, values
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error


def read_json(
    path: str, columns: Mapping[str, str]
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The entries of a list under our column names, and what is kept without being obeyed."""
    entries = _entries(path)
    base = os.path.basename(path)
    result, framed, doubled = [], 0, 0
    for number, entry in enumerate(entries, start=1):
        where = f"{base} entry {number}"
        if not isinstance(entry, dict):
            raise ValueError(
                f"{where}: is a {type(entry).__name__}, expected an object with 'video'"
            )
        values = dict(entry)
        media = next((key for key in _MEDIA_KEYS if key in values), None)
        if media and "path" not in columns:
            values["path"] = values.pop(media)
        elif "audio" in values and "path" not in columns:
            raise ValueError(f"{where}: has only audio; a record needs a video or an image")
        if values.get("captions") is not None and values.get("caption") is not None:
            # The reference takes the list where both are given.
            doubled += values.pop("caption") is not None
        framed += any(key in values for key in ("video_start_frame", "video_end_frame"))
        result.append((where, values))
    notes = []
    if doubled:
        notes.append(f"{doubled} entries have 'caption' and 'captions'; took 'captions'")
    if framed:
        notes.append(
            f"{framed} entries limit the video by frame numbers; these are stored, but not cut by: "
            "give 'start' and 'end' in seconds to cut"
        )
    return result, notes


def _entries(path: str) -> list[Any]:
    base = os.path.basename(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{base} line {error.lineno}: is not JSON ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    except (ValueError, RecursionError):
        entries = cells.parse_json(f"{base}:", text)  # which says why
    if not isinstance(entries, list):
        raise ValueError(
            f"{path}: is a JSON {type(entries).__name__}, expected a list of "
            '{"video": path, "caption": text}; for one object per line name the file .jsonl'
        )
    return entries
