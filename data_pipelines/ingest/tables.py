"""Tables of videos: CSV, TSV and JSONL with the same columns.

======================  =====================================================================
``path``                required; relative to the table's folder, or to ``--root``
``label``               one class name, or a class index
``labels``              several: a JSON list or names separated by ``|``
``caption, captions``   one text, or a JSON list of texts
``start, end``          seconds or ``HH:MM:SS.mmm`` in the video
``split``               name of the split
``segments, boxes``     what happens when and where; see :mod:`data_pipelines.ingest.annotate`
``id``                  unique id; by default the path, with the span when there is one
anything else           stored in the record as ``extra/NAME``
======================  =====================================================================

InternVid's columns are known by their own names. The training sets of the reference repositories
are JSON lists of ``{"video": ..., "caption": ...}``, the same table in another dress.
"""

import contextlib
import csv
import difflib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from data_pipelines.ingest import annotate
from data_pipelines.ingest.options import Options
from data_pipelines.ingest.path_template import PathTemplate
from data_pipelines.ingest.rows import Listing, Row, RowBox, RowSegment, printable

# fmt: off
COLUMNS = (
    "path", "label", "labels", "caption", "captions", "start", "end", "segments", "boxes",
    "split", "id",
)
# fmt: on

# InternVid: one clip per line, several of a video, files named by the id of the video.
_INTERNVID_KEY = "YoutubeID"
_INTERNVID = {"caption": "Caption", "start": "Start_timestamp", "end": "End_timestamp"}
# What a JSON list calls the file: video sets and image sets of the reference repositories.
_MEDIA_KEYS = ("path", "video", "image")

_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")
# Leading zeros mark an identifier, not a number.
_INT = re.compile(r"-?(0|[1-9]\d{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9]\d*)(\.\d+([eE][-+]?\d+)?|[eE][-+]?\d+)")


def read(path: str, options: Options) -> Listing:
    """Rows of a table; see :func:`data_pipelines.ingest.sources.read` for the errors."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".csv", ".tsv"):
        lines = _read_csv(path, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".jsonl", ".ndjson"):
        lines = _read_jsonl(path)
    else:
        raise ValueError(
            f"{path}: do not know how to read {suffix or 'a file without suffix'} as a table; "
            "expected .csv, .tsv, .jsonl or a folder, or name the --format"
        )
    return _listing(path, lines, options, [])


def read_json(path: str, options: Options) -> Listing:
    """Rows of a JSON list of ``{video | image, caption | captions}``; errors as in :func:`read`."""
    lines, notes = _read_json(path, options.columns)
    return _listing(path, iter(lines), options, notes)


def _listing(
    path: str, lines: Iterator[tuple[str, dict[str, Any]]], options: Options, notes: list[str]
) -> Listing:
    unknown = [ours for ours in options.columns if ours not in COLUMNS]
    if unknown:
        raise ValueError(
            f"{path}: --columns names {unknown[0]!r}, expected one of {', '.join(COLUMNS)}"
        )
    first = next(lines, None)
    if first is not None:
        lines = itertools.chain([first], lines)
    columns = options.columns
    if first is not None and _INTERNVID_KEY in first[1] and "path" not in first[1]:
        columns = {**_INTERNVID, **columns}
        notes.append(f"read as InternVid's layout: {', '.join(columns.values())}")
    template = None
    if options.path_template is not None:
        template = PathTemplate(options.path_template, columns)
    cut = options.cut == "yes" or (options.cut == "auto" and not (template and template.has_times))
    if template and options.cut == "auto" and template.has_times:
        notes.append("--path-template names the times, so the files are taken as already cut")
    root = options.root if options.root is not None else os.path.dirname(path)
    rows, empty_captions = [], 0
    raw_extras: list[dict[str, Any]] = []
    seen: set[str] = set()
    for where, values in lines:
        seen.update(values)
        known, extra = _divide(values, columns)
        start, end = _span(where, known)
        if template is not None:
            known["path"] = template.fill(where, values, start, end)
        _check_columns(where, known, values)
        if not cut:
            times = {columns.get(key, key): known.get(key) for key in ("start", "end")}
            extra |= {name: time for name, time in times.items() if time not in (None, "")}
            start = end = None
        row, dropped = _row(where, known, root, options.split, start, end)
        empty_captions += dropped
        rows.append(row)
        raw_extras.append(extra)
    for ours, theirs in options.columns.items():
        if rows and theirs not in seen:
            raise ValueError(
                f"{path}: no column {theirs!r} for --columns {ours}={theirs}; "
                f"found {', '.join(sorted(seen))}"
            )
    if empty_captions:
        notes.append(f"dropped {empty_captions} empty captions")
    typed = _type_extras(raw_extras)
    rows = [replace(row, extra=extra) for row, extra in zip(rows, typed, strict=True)]
    return Listing(rows, notes)


def _divide(
    values: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our columns under our names, and the others; a column --columns replaces is another."""
    ours = {theirs: name for name, theirs in columns.items()}
    ours |= {name: name for name in COLUMNS if name not in columns}
    known = {ours[key]: value for key, value in values.items() if key in ours}
    extra = {k: v for k, v in values.items() if k not in ours and v is not None}
    return known, extra


def _read_csv(path: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    base = os.path.basename(path)
    try:
        # utf-8-sig: spreadsheets put a byte order mark first.
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise ValueError(f"{path}: is empty; expected a header line with a column 'path'")
            twice = [name for name in header if header.count(name) > 1]
            if twice:
                raise ValueError(f"{path}: has two columns named {twice[0]!r}")
            for cells in reader:
                where = f"{base} line {reader.line_num}"
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{where}: {len(cells)} cells, the header has {len(header)}; put cells "
                        "that contain the separator into double quotes"
                    )
                yield (
                    where,
                    {k: v.strip() or None for k, v in zip(header, cells, strict=True)},
                )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}: is not readable CSV ({error})") from error


def _read_jsonl(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    base = os.path.basename(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                where = f"{base} line {number}"
                if not line.strip():
                    continue
                try:
                    values = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise ValueError(f"{where}: is not JSON ({error})") from error
                if not isinstance(values, dict):
                    raise ValueError(
                        f"{where}: is a {type(values).__name__}, expected an object with 'path'"
                    )
                yield where, values
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error


def _read_json(
    path: str, columns: Mapping[str, str]
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The entries of a list under our column names, and what is kept without being obeyed."""
    base = os.path.basename(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            entries = json.load(file)
    except (json.JSONDecodeError, RecursionError) as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{base}{line}: is not JSON ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    if not isinstance(entries, list):
        raise ValueError(
            f"{path}: is a JSON {type(entries).__name__}, expected a list of "
            '{"video": path, "caption": text}; for one object per line name the file .jsonl'
        )
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


def _check_columns(where: str, known: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    if "path" not in known:
        near = difflib.get_close_matches("path", list(values), n=1, cutoff=0.3)
        guess = near[0] if near else next(iter(values), "COLUMN")
        raise ValueError(
            f"{where}: no column 'path'; found {', '.join(values) or 'nothing'}. "
            f"If the files are in another column, add --columns path={guess}; if their names are "
            f"made from columns, add for example --path-template '{{{guess}}}.mp4'"
        )
    for one, many in (("label", "labels"), ("caption", "captions")):
        if known.get(one) is not None and known.get(many) is not None:
            raise ValueError(f"{where}: has both {one!r} and {many!r}; keep one of them")


def _span(where: str, values: Mapping[str, Any]) -> tuple[float | None, float | None]:
    start, end = (seconds(where, key, values.get(key)) for key in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where}: end {end:g} s is not after start {start or 0:g} s")
    return start, end


def _row(
    where: str,
    values: Mapping[str, Any],
    root: str,
    default_split: str,
    start: float | None,
    end: float | None,
) -> tuple[Row, int]:
    path = _raw(where, "path", values["path"])
    if not path:
        raise ValueError(f"{where}: the path is empty")
    labels = _list(where, "label", values.get("label")) or _list(
        where, "labels", values.get("labels"), "|"
    )
    captions = _list(where, "caption", values.get("caption")) or _list(
        where, "captions", values.get("captions")
    )
    name = printable(path)
    span = "" if start is None and end is None else f"#{_time(start)}-{_time(end)}"
    kept = tuple(caption for caption in captions if caption)
    segments, boxes, problem = _annotations(where, values)
    row = Row(
        path=os.path.join(root, path),
        name=name,
        id=_text(where, "id", values.get("id")) or name + span,
        split=_text(where, "split", values.get("split")) or default_split,
        labels=tuple(label for label in labels if label),
        captions=kept,
        start=start,
        end=end,
        segments=segments,
        boxes=boxes,
        where=where,
        problem=problem,
    )
    return row, len(captions) - len(kept)


def _annotations(
    where: str, values: Mapping[str, Any]
) -> tuple[tuple[RowSegment, ...], tuple[RowBox, ...], str]:
    """Segments and boxes, or the problem that costs this row, not the whole table."""
    try:
        segments = annotate.read_segments(values.get("segments"))
        return segments, annotate.read_boxes(values.get("boxes")), ""
    except ValueError as error:
        return (), (), f"{where}: {error}"


def _time(seconds: float | None) -> str:
    return (
        "" if seconds is None else f"{seconds:g}" if seconds == int(seconds) else f"{seconds:.3f}"
    )


def _raw(where: str, key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{where}: {key} is {value!r}, expected text")
    return str(value).strip()


def _text(where: str, key: str, value: Any) -> str:
    return printable(_raw(where, key, value))


def _list(where: str, key: str, value: Any, separator: str = "") -> tuple[str, ...]:
    """One value or several: a list, a JSON list in a cell, or cells joined by ``separator``."""
    if isinstance(value, str) and key != "label" and value.startswith("["):
        # A text may well begin with a bracket without being a list.
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            value = json.loads(value)
    if isinstance(value, str) and separator:
        value = value.split(separator)
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(_text(where, key, item) for item in values)


def seconds(where: str, key: str, value: Any) -> float | None:
    """A time as tables have it; None for an empty cell, ValueError for anything else."""
    if value is None or value == "":
        return None
    clock = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if clock:
        hours, minutes, rest = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest)
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if isinstance(value, bool) or not math.isfinite(result) or result < 0:
        raise ValueError(f"{where}: {key} is {value!r}, expected seconds from 0 or HH:MM:SS.mmm")
    return result


def _type_extras(rows: list[dict[str, Any]]) -> list[dict[str, int | float | str]]:
    """Give every extra column one type, since readers declare a type per key.

    Integers where all cells are, numbers where all are, text otherwise; what is neither a number
    nor text (JSONL only) is stored as JSON text.
    """
    kinds: dict[str, type] = {}
    for row in rows:
        for name, value in row.items():
            kinds[name] = _wider(kinds.get(name, int), _kind(value))
    return [{name: _convert(value, kinds[name]) for name, value in row.items()} for row in rows]


def _wider(first: type, second: type) -> type:
    order = (int, float, str)
    return order[max(order.index(first), order.index(second))]


def _kind(value: Any) -> type:
    if isinstance(value, int):  # bool too: stored as 0 or 1
        return int if abs(value) < 2**63 else str
    if isinstance(value, str):
        if _INT.fullmatch(value):
            return int
        if not _FLOAT.fullmatch(value):
            return str
        value = float(value)
    # Records hold single precision.
    return float if isinstance(value, float) and abs(value) < 3.4e38 else str


def _convert(value: Any, kind: type) -> int | float | str:
    if kind is not str:
        return kind(value)
    return printable(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
