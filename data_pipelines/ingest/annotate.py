"""Segments, boxes and turns of a row: from the cells of a table to what the record stores.

The columns hold JSON lists of objects, with times in seconds or `HH:MM:SS.mmm` of the source
video, like the columns `start` and `end`, whatever part of it the row cuts out::

    "segments": [{"start": 1.5, "end": 4, "label": "pour", "caption": "pours tea"}]
    "boxes": [{"time": 2, "y1": 0.1, "x1": 0.2, "y2": 0.9, "x2": 0.6,
               "labels": ["stand", "talk"], "track": 0}]
    "turns": [{"role": "user", "text": "What is it?"}, {"role": "assistant", "text": "A kettle."}]

`label`, `labels`, `caption` and `track` may be left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.ingest import cells
from data_pipelines.ingest.container import VideoError
from data_pipelines.ingest.rows import RowBox, RowSegment
from data_pipelines.records.conversation import Turn
from data_pipelines.records.localisation import Box, Segment
from data_pipelines.records.messages import INT64, shortest

# Annotated times are rounded to milliseconds or to hundredths of a second.
_EDGE_US = 10_000


def read_segments(value: Any) -> tuple[RowSegment, ...]:
    """Parse a cell `segments`; sorted by time.

    Raises:
      ValueError: the cell or a segment in it is not as described above.
    """
    result = []
    for name, item in _objects("segments", "segment", value, {"start", "end", "label", "caption"}):
        start, end = (_seconds(name, item, key) for key in ("start", "end"))
        if end <= start:
            raise ValueError(f"{name} ends at {end:g} s, not after its start at {start:g} s")
        label = cells.label(name, "label", item.get("label"))
        caption = cells.text(name, "caption", item.get("caption"))
        result.append(RowSegment(start, end, label, caption))
    return tuple(sorted(result, key=lambda s: (s.start, s.end)))


def read_boxes(value: Any) -> tuple[RowBox, ...]:
    """Parse a cell `boxes`; sorted by time, then by track.

    Raises:
      ValueError: the cell or a box in it is not as described above.
    """
    result = []
    keys = {"time", "y1", "x1", "y2", "x2", "label", "labels", "track"}
    for name, item in _objects("boxes", "box", value, keys):
        time = _seconds(name, item, "time")
        y1, x1, y2, x2 = (_share(name, item, key) for key in ("y1", "x1", "y2", "x2"))
        if not (y1 < y2 and x1 < x2):
            raise ValueError(
                f"{name} is y {y1:g} to {y2:g}, x {x1:g} to {x2:g}; expected y1 < y2 and x1 < x2"
            )
        if item.get("label") is not None and item.get("labels") is not None:
            raise ValueError(f"{name} has both 'label' and 'labels'; keep one of them")
        labels = item.get("labels", item.get("label"))
        values = labels if isinstance(labels, list) else [] if labels is None else [labels]
        names = dict.fromkeys(cells.label(name, "label", label) for label in values)
        track = -1 if item.get("track") is None else item["track"]
        if isinstance(track, bool) or not isinstance(track, int) or track not in INT64:
            raise ValueError(f"{name}: track is {cells.shown(track)}, expected an integer")
        result.append(RowBox(time, y1, x1, y2, x2, tuple(n for n in names if n), track))
    return tuple(sorted(result, key=lambda b: (b.time, b.track)))


def read_turns(value: Any) -> tuple[Turn, ...]:
    """Parse a cell `turns`, in its order.

    Raises:
      ValueError: the cell or a turn in it is not as described above.
    """
    result = []
    for name, item in _objects("turns", "turn", value, {"role", "text"}):
        role, said = (cells.text(name, key, item.get(key)) for key in ("role", "text"))
        if not (role and said):
            raise ValueError(f"{name} has no {'text' if role else 'role'}")
        result.append(Turn(role, said))
    return tuple(result)


# Column of a table -> how its cells are read; fields of `Row` of the same names.
COLUMNS = {"segments": read_segments, "boxes": read_boxes, "turns": read_turns}


class Placed(NamedTuple):
    """What a record stores, and what had to be changed for it, one sentence each."""

    segments: tuple[Segment, ...]
    boxes: tuple[Box, ...]
    remarks: tuple[str, ...]


def place(
    segments: Sequence[RowSegment],
    boxes: Sequence[RowBox],
    start_us: int,
    end_us: int,
    class_index: Mapping[str, int],
) -> Placed:
    """Put the annotations of a row onto the clip that was made of it.

    A segment that ends after the clip is cut there, since annotated ends and the last frame
    rarely agree; one that lies outside, or begins before the clip, is a mistake of the row.

    Args:
      segments, boxes: of the row.
      start_us, end_us: the span of the source video the clip covers.
      class_index: index by class name.

    Raises:
      VideoError: stage `label`, an annotation lies outside the clip.
    """
    span = f"the clip, which covers {start_us / 1e6:g} to {end_us / 1e6:g} s of the video"
    remarks: list[str] = []
    placed: list[Segment] = []
    for segment in segments:
        low, high = round(segment.start * 1e6), round(segment.end * 1e6)
        text = f"segment {segment.start:g} to {segment.end:g} s"
        if low < start_us - _EDGE_US:
            raise VideoError("label", f"{text} begins before {span}")
        if low >= end_us:
            raise VideoError("label", f"{text} begins after {span}")
        if high > end_us + _EDGE_US:
            remarks.append(f"{text} was cut at {end_us / 1e6:g} s, the end of the clip")
        low, high = max(low, start_us), max(low + 1, min(high, end_us))
        label = class_index[segment.label] if segment.label else -1
        placed.append(Segment(low, high, label, segment.label, segment.caption))
    found: list[Box] = []
    for box in boxes:
        time = round(box.time * 1e6)
        if not start_us - _EDGE_US <= time <= end_us + _EDGE_US:
            raise VideoError("label", f"the box at {box.time:g} s is outside {span}")
        found.append(
            Box(
                time_us=min(max(time, start_us), end_us),
                y1=box.y1,
                x1=box.x1,
                y2=box.y2,
                x2=box.x2,
                labels=tuple(class_index[label] for label in box.labels),
                label_names=box.labels,
                track=box.track,
            )
        )
    return Placed(tuple(placed), tuple(found), tuple(remarks))


def _objects(
    column: str, one: str, value: Any, keys: set[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a cell with their names, such as `box 0`; ValueError for other keys."""
    if isinstance(value, str):
        value = cells.parse_json(column, value) if value.strip() else None
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{column} is not a list of objects")
    for number, item in enumerate(value):
        name, unknown = f"{one} {number}", [key for key in item if key not in keys]
        if unknown:
            raise ValueError(f"{name} has {unknown[0]!r}, expected {', '.join(sorted(keys))}")
        yield name, item


def _seconds(name: str, item: Mapping[str, Any], key: str) -> float:
    value = cells.seconds(name, key, item.get(key))
    if value is None:
        raise ValueError(
            f"{name}: {key} is {item.get(key)!r}, expected seconds from 0 or HH:MM:SS.mmm"
        )
    return value


def _share(name: str, item: Mapping[str, Any], key: str) -> float:
    share = _number(name, key, item.get(key), 0, 1, "a share of the image from 0 to 1")
    return shortest(share)  # records hold single precision


def _number(name: str, key: str, value: Any, low: float, high: float, expected: str) -> float:
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not low <= result <= high:
        raise ValueError(f"{name}: {key} is {cells.shown(value)}, expected {expected}")
    return result
