"""Lists of captioned clips, row by row: JSONL (also .gz) and Parquet."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from data_pipelines.ingest.cells import MAX_LINE, parse_json, seconds, shown

# What a column may be called; the first that a row has is taken. `similarity` is what scoring with
# a model writes, the cosine of clip and caption.
COLUMNS: dict[str, tuple[str, ...]] = {
    "video_id": ("YoutubeID", "video_id"),
    "video": ("video", "path"),
    "caption": ("Caption", "caption"),
    "start": ("Start_timestamp", "start"),
    "end": ("End_timestamp", "end"),
    "similarity": ("similarity", "UMT_Score", "UMT-SIM"),
    "aesthetic": ("aesthetic", "Aesthetic_Score"),
    "language": ("language", "Language"),
}
_ID_LENGTH = 11  # of YouTube's ids, with which the file names of clips begin

# A row as it is stored: a line of a JSONL file, or the values of a Parquet row.
Stored = bytes | Mapping[str, Any]


class LongLine(bytes):
    """The beginning of a line of more than MAX_LINE bytes, which is no row."""


@dataclass(frozen=True)
class ListedClip:
    """One row; None is what it does not say."""

    video: str  # the source video, the same for all its clips
    name: str  # the file, or the video where a row names no file
    caption: str
    start: float | None  # seconds
    end: float | None
    similarity: float | None
    aesthetic: float | None
    language: str | None


def kind(path: str) -> str:
    """`jsonl` or `parquet`, by the ending; ValueError for others."""
    lower = path.lower().removesuffix(".gz")
    if lower.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    if lower.endswith(".parquet") and not path.lower().endswith(".gz"):
        return "parquet"
    raise ValueError(
        f"{path}: expected a list that ends in .jsonl, .jsonl.gz or .parquet, one clip per row"
    )


def pyarrow_parquet() -> Any:
    """The module pyarrow.parquet; ValueError that says how to get it."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(
            "Parquet files need pyarrow: pip install 'internvideo-jax[parquet]'"
        ) from error


def resumable(path: str) -> bool:
    """Whether `stored` can begin in the middle."""
    return kind(path) == "jsonl" and not path.lower().endswith(".gz")


def stored(path: str, begin: int = 0) -> Iterator[tuple[Stored, int]]:
    """Every row as it is stored, and where the next one begins; blank lines are no rows.

    Args:
      begin: a place that was yielded before, for files that are `resumable`.
    """
    if kind(path) == "parquet":
        for row in _parquet(path):
            yield row, 0
        return
    with _open(path) as file:
        place = begin
        try:
            file.seek(begin)
            while line := file.readline(MAX_LINE + 1):
                place += len(line)
                if len(line) > MAX_LINE:
                    line, place = LongLine(line[:100]), place + _skip(file, line)
                if line.strip():
                    yield line, place
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise RuntimeError(f"{path}: is not a whole gzip file ({error})") from error


def _skip(file: BinaryIO, line: bytes) -> int:
    """Reads to the end of a line without keeping it; returns how many bytes."""
    length = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(1 << 20)
        length += len(line)
    return length


def _parquet(path: str) -> Iterator[Mapping[str, Any]]:
    module = pyarrow_parquet()
    try:
        file = module.ParquetFile(path)
    except OSError:
        raise
    except Exception as error:  # pyarrow has its own, of several bases
        raise ValueError(f"{path}: is not a readable Parquet file ({error})") from error
    try:
        for batch in file.iter_batches(batch_size=8192):
            yield from batch.to_pylist()
    except Exception as error:
        raise RuntimeError(f"{path}: cannot be read to its end ({error})") from error


def _open(path: str) -> BinaryIO:
    opened: Callable[..., Any] = gzip.open if path.lower().endswith(".gz") else open
    return opened(path, "rb")


def read(row: Stored, where: str, names: Mapping[str, str]) -> ListedClip:
    """The values of a row.

    Args:
      where: what errors call the row.
      names: columns under other names, COLUMNS' key -> name in the list.

    Raises:
      ValueError: no object, no video, a time, score or caption of another type, end before start.
    """
    values = _object(row, where) if isinstance(row, bytes) else row

    def value(column: str) -> Any:
        if column in names:
            return values.get(names[column])
        return next((values[name] for name in COLUMNS[column] if name in values), None)

    video, name = value("video_id"), value("video")
    if video is None and isinstance(name, str):
        # As the reference's script: clips are called by the id of their video and a number.
        video = os.path.basename(name)[:_ID_LENGTH]
    if not isinstance(video, str) or not video:
        raise ValueError(
            f"{where}: names no video; expected a column "
            f"{', '.join(COLUMNS['video_id'] + COLUMNS['video'])}, or --columns video_id=NAME"
        )
    caption, language = value("caption"), value("language")
    for column, text in (("caption", caption), ("language", language)):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{where}: {column} is {shown(text)}, expected text")
    start, end = (seconds(where, column, value(column)) for column in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where}: end {end:g} s is not after start {start or 0:g} s")
    return ListedClip(
        video,
        name if isinstance(name, str) else video,
        caption or "",
        start,
        end,
        _score(where, "similarity", value("similarity")),
        _score(where, "aesthetic", value("aesthetic")),
        language,
    )


def _object(line: bytes, where: str) -> Mapping[str, Any]:
    if isinstance(line, LongLine):
        raise ValueError(f"{where}: is longer than {MAX_LINE >> 20} MiB")
    values = parse_json(f"{where}:", line)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: is a {type(values).__name__}, expected an object")
    return values


def _score(where: str, column: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{where}: {column} is {shown(value)}, expected a finite number")
    return number
