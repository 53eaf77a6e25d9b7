"""Tables of videos: CSV, TSV and JSONL with the same columns.

======================  =====================================================================
`path`                required, unless no file is read; relative to the table's folder, or to
                        `--root`
`label`               one class name, or a class index
`labels`              several: a JSON list or names separated by `|`
`caption, captions`   one text, or a JSON list of texts
`start, end`          seconds or `HH:MM:SS.mmm` in the video
`split`               name of the split
`segments, boxes`     what happens when and where; see `ingest.annotate`
`turns`               a conversation about it; see there
`id`                  unique id; by default the path, with the span when there is one
anything else           stored in the record as `extra/NAME`
======================  =====================================================================

InternVid's columns are known by their own names. The training sets of the reference repositories
are JSON lists of `{"video": ..., "caption": ...}`, the same table in another dress.
"""

import difflib
import itertools
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from data_pipelines.ingest import alone, annotate, cells, extras, table_files
from data_pipelines.ingest.cells import RowError, seconds
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.path_template import PathTemplate
from data_pipelines.ingest.rows import Listing, Row, printable
from data_pipelines.ingest.suffixes import VIDEO_SUFFIXES, names_media

# fmt: off
COLUMNS = (
    "path", "label", "labels", "caption", "captions", "start", "end", *annotate.COLUMNS,
    "split", "id",
)
# fmt: on

# InternVid: one clip per line, several of a video, files named by the id of the video.
_INTERNVID_KEY = "YoutubeID"
_INTERNVID = {"caption": "Caption", "start": "Start_timestamp", "end": "End_timestamp"}


def read(path: str, options: IngestOptions) -> Listing:
    """Rows of a table; see `ingest.sources.read` for the errors."""
    suffix = os.path.splitext(path)[1].lower()
    notes: list[str] = []
    if suffix in (".csv", ".tsv"):
        lines = table_files.read_csv(path, wanted(options), notes)
    elif suffix in (".jsonl", ".ndjson"):
        lines = table_files.read_jsonl(path)
    elif suffix in VIDEO_SUFFIXES:
        raise ValueError(f"{path}: one video; expected the folder that holds it, or a table")
    else:
        raise ValueError(
            f"{path}: do not know how to read {suffix or 'a file without suffix'} as a table; "
            "expected .csv, .tsv, .jsonl or a folder, or name the --format"
        )
    return _listing(path, lines, options, notes)


def read_json(path: str, options: IngestOptions) -> Listing:
    """Rows of a JSON list of `{video | image, caption | captions}`; errors as in `read`."""
    lines, notes = table_files.read_json(path, options.columns)
    return _listing(path, iter(lines), options, notes)


def wanted(options: IngestOptions) -> Collection[str]:
    """Column names that a table may have; a template names columns of its own."""
    names = {*COLUMNS, *options.columns.values(), _INTERNVID_KEY, *_INTERNVID.values()}
    if options.path_template is not None:
        names |= PathTemplate(options.path_template, options.columns).names
    return names


def _listing(
    path: str, lines: table_files.Lines, options: IngestOptions, notes: list[str]
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
    reader = _Reader(path, options, columns)
    if reader.template and options.cut == "auto" and reader.template.has_times:
        notes.append("--path-template names the times, so the files are taken as already cut")
    rows, raw_extras, faults = [], [], []
    for where, values in lines:
        try:
            row, extra = reader.row(where, values)
        except RowError as error:
            faults.append(str(error))
            row, extra = reader.rejected(where, values, str(error)), {}
        rows.append(row)
        raw_extras.append(extra)
    if faults and len(faults) == len(rows):
        more = f" (none of the {len(rows)} rows can be used)" if len(rows) > 1 else ""
        raise ValueError(faults[0] + more)
    for ours, theirs in options.columns.items():
        if rows and theirs not in reader.seen:
            raise ValueError(
                f"{path}: no column {theirs!r} for --columns {ours}={theirs}; "
                f"found {cells.some(sorted(reader.seen))}"
            )
    if reader.empty_captions:
        notes.append(f"dropped {reader.empty_captions} empty captions")
    typed = extras.typed(raw_extras, notes)
    rows = [replace(row, extra=extra) for row, extra in zip(rows, typed, strict=True)]
    return Listing(rows, notes)


class _Reader:
    """Rows out of the values of a table.

    Attributes:
      template: of the paths, None if the table has them.
      seen: names of all columns met.
      empty_captions: how many were dropped.
    """

    def __init__(self, path: str, options: IngestOptions, columns: Mapping[str, str]):
        self._options, self._columns = options, columns
        self._root = options.root if options.root is not None else os.path.dirname(path)
        self._files = options.media != "features"
        self.template = None
        if options.path_template is not None:
            self.template = PathTemplate(options.path_template, columns)
        cut_already = self.template is not None and self.template.has_times
        self._cut = options.cut == "yes" or (options.cut == "auto" and not cut_already)
        self.seen: set[str] = set()
        self.empty_captions = 0

    def row(self, where: str, values: Mapping[str, Any]) -> tuple[Row, dict[str, Any]]:
        """The row and its further columns; RowError if it can be none."""
        self.seen.update(values)
        known, extra = _divide(values, self._columns)
        start, end = _span(where, known)
        if self.template is not None:
            known["path"] = self.template.fill(where, values, start, end)
        if self._files:
            _check_path(where, known, values)
        _check_columns(where, known)
        if not self._cut:
            times = {self._columns.get(key, key): known.get(key) for key in ("start", "end")}
            extra |= {name: time for name, time in times.items() if time not in (None, "")}
            start = end = None
        split = _name(where, "split", known.get("split"))
        row, dropped = _row(where, known, self._root, split or self._options.split, start, end)
        self.empty_captions += dropped
        return row if self._files else replace(row, path=alone.SCHEME + row.name), extra

    def rejected(self, where: str, values: Mapping[str, Any], problem: str) -> Row:
        """What is listed of a row that is none: the file and the split, if it tells them."""
        known, _ = _divide(values, self._columns)
        told = {key: known.get(key) for key in ("path", "split")}
        path, split = (value if isinstance(value, str) else "" for value in told.values())
        return Row(
            path=os.path.join(self._root, path),
            name=printable(path) or where,
            id=where,
            split=printable(split.strip()) or self._options.split,
            where=where,
            problem=problem,
        )


def _divide(
    values: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our columns under our names, and the others; a column --columns replaces is another."""
    ours = {theirs: name for name, theirs in columns.items()}
    ours |= {name: name for name in COLUMNS if name not in columns}
    known = {ours[key]: value for key, value in values.items() if key in ours}
    extra = {k: v for k, v in values.items() if k not in ours and v is not None}
    return known, extra


def _check_path(where: str, known: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    if "path" not in known:
        guess = next((key for key, value in values.items() if names_media(str(value)[-9:])), None)
        near = difflib.get_close_matches("path", list(values), n=1, cutoff=0.3)
        guess = guess or (near[0] if near else "COLUMN")
        guess = guess if len(guess) <= 60 else "COLUMN"
        raise RowError(
            f"{where}: no column 'path'; found {cells.some(values)}. "
            f"If the files are in another column, add --columns path={guess}; if their names are "
            f"made from columns, add for example --path-template '{{{guess}}}.mp4'; if the first "
            "line is no header, add --format kinetics"
        )
    if not cells.plain(where, "path", known["path"]):
        raise RowError(f"{where}: the path is empty")


def _check_columns(where: str, known: Mapping[str, Any]) -> None:
    for one, many in (("label", "labels"), ("caption", "captions")):
        if known.get(one) is not None and known.get(many) is not None:
            raise RowError(f"{where}: has both {one!r} and {many!r}; keep one of them")


def _span(where: str, values: Mapping[str, Any]) -> tuple[float | None, float | None]:
    start, end = (seconds(where, key, values.get(key)) for key in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise RowError(f"{where}: end {end:g} s is not after start {start or 0:g} s")
    return start, end


def _row(
    where: str,
    values: Mapping[str, Any],
    root: str,
    split: str,
    start: float | None,
    end: float | None,
) -> tuple[Row, int]:
    path = cells.plain(where, "path", values.get("path"))
    given = _name(where, "id", values.get("id"))
    if not (path or given):
        raise RowError(f"{where}: has neither 'id' nor 'path'; one of them names the record")
    labels = cells.items(where, "label", values.get("label"), read=cells.label) or cells.items(
        where, "labels", values.get("labels"), "|", cells.label
    )
    captions = cells.items(where, "caption", values.get("caption")) or cells.items(
        where, "captions", values.get("captions")
    )
    name = printable(path) or given
    span = "" if start is None and end is None else f"#{_time(start)}-{_time(end)}"
    kept = tuple(caption for caption in captions if caption)
    row = Row(
        path=os.path.join(root, path),
        name=name,
        id=given or name + span,
        split=split,
        labels=tuple(label for label in labels if label),
        captions=kept,
        start=start,
        end=end,
        where=where,
        **_annotations(where, values),
    )
    return row, len(captions) - len(kept)


def _annotations(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Segments, boxes and turns, or the problem that costs this row, not the whole table."""
    try:
        return {name: read(values.get(name)) for name, read in annotate.COLUMNS.items()}
    except ValueError as error:
        return {"problem": f"{where}: {error}"}


def _time(seconds: float | None) -> str:
    return (
        "" if seconds is None else f"{seconds:g}" if seconds == int(seconds) else f"{seconds:.3f}"
    )


def _name(where: str, key: str, value: Any) -> str:
    return printable(cells.plain(where, key, value))
