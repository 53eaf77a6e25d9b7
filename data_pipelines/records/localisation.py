"""What happens when and where in a clip: segments and boxes, and how a record holds them.

All keys are in the context and parallel: element `i` of each belongs to segment or box `i`.

====================================  =====  =================================================
`segment/start|end/timestamp`       int64  microseconds in the source video
`segment/label/index`               int64  class index, -1 for none
`segment/label/string`              bytes  class name, empty for none
`segment/caption/string`            bytes  text about the segment, empty for none
`box/timestamp`                     int64  microseconds in the source video
`box/y1|x1|y2|x2`                   float  edges from 0 (top, left) to 1
`box/track`                         int64  id of the person or thing, -1 for none
`box/label/count`                   int64  number of labels of the box
`box/label/index`                   int64  class indices of all boxes, one box after another
`box/label/string`                  bytes  class names, parallel to the indices
====================================  =====  =================================================
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.records.messages import (
    INT64,
    SchemaError,
    floats,
    ints,
    put_floats,
    put_ints,
    put_texts,
    shortest,
    texts,
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of a clip that has a class, a text, or both.

    Attributes:
      start_us, end_us: microseconds from the start of the source video, the clock of
        `Record.timestamps_us`; the end is not part of the segment.
      label: class index, -1 for none.
      label_name: class name.
      caption: text about the span.
    """

    start_us: int
    end_us: int
    label: int = -1
    label_name: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the image shown at one time.

    Attributes:
      time_us: microseconds from the start of the source video.
      y1, x1, y2, x2: top, left, bottom, right as shares of the image's height and width; single
        precision.
      labels: class indices, any number of them.
      label_names: class names, parallel to `labels`.
      track: id of the person or thing, the same from time to time; -1 for none.
    """

    time_us: int
    y1: float
    x1: float
    y2: float
    x2: float
    labels: tuple[int, ...] = ()
    label_names: tuple[str, ...] = ()
    track: int = -1


def check(segments: Sequence[Segment], boxes: Sequence[Box]) -> str:
    """What keeps segments or boxes from being stored, or an empty text."""
    for number, segment in enumerate(segments):
        if segment.end_us <= segment.start_us:
            return (
                f"segment {number} ends at {segment.end_us} us, not after its start at "
                f"{segment.start_us} us"
            )
        if not _fit(segment.start_us, segment.end_us, segment.label):
            return f"segment {number}: a label or time does not fit 64 bits"
    for number, box in enumerate(boxes):
        # As they will be read back: edges that differ by less than that make no box.
        y1, x1, y2, x2 = map(shortest, (box.y1, box.x1, box.y2, box.x2))
        # Written so that a NaN fails it.
        if not (0 <= y1 < y2 <= 1 and 0 <= x1 < x2 <= 1):
            return (
                f"box {number} is y {box.y1} to {box.y2}, x {box.x1} to {box.x2}; expected "
                "0 <= y1 < y2 <= 1 and 0 <= x1 < x2 <= 1"
            )
        if len(box.label_names) != len(box.labels):
            return f"box {number}: {len(box.label_names)} label names for {len(box.labels)} labels"
        if not _fit(box.time_us, box.track, *box.labels):
            return f"box {number}: a label, track or time does not fit 64 bits"
    return ""


def _fit(*numbers: int) -> bool:
    return all(number in INT64 for number in numbers)


def put(context: Any, segments: Sequence[Segment], boxes: Sequence[Box]) -> None:
    """Store into the context features of a SequenceExample."""
    if segments:
        put_ints(context, "segment/start/timestamp", *(s.start_us for s in segments))
        put_ints(context, "segment/end/timestamp", *(s.end_us for s in segments))
        put_ints(context, "segment/label/index", *(s.label for s in segments))
        put_texts(context, "segment/label/string", *(s.label_name for s in segments))
        put_texts(context, "segment/caption/string", *(s.caption for s in segments))
    if boxes:
        put_ints(context, "box/timestamp", *(b.time_us for b in boxes))
        for edge in ("y1", "x1", "y2", "x2"):
            put_floats(context, f"box/{edge}", *(getattr(b, edge) for b in boxes))
        put_ints(context, "box/track", *(b.track for b in boxes))
        put_ints(context, "box/label/count", *(len(b.labels) for b in boxes))
        put_ints(context, "box/label/index", *(i for b in boxes for i in b.labels))
        put_texts(context, "box/label/string", *(n for b in boxes for n in b.label_names))


def get_segments(context: Any) -> tuple[Segment, ...]:
    """The segments of a record; SchemaError when the keys contradict each other.

    Without start times, as in records of others that use single keys of these, there are none.
    """
    starts = ints(context, "segment/start/timestamp")
    if not starts:
        return ()
    count = len(starts)
    ends = _parallel(ints(context, "segment/end/timestamp"), count, "segment/end/timestamp", None)
    labels = _parallel(ints(context, "segment/label/index"), count, "segment/label/index", -1)
    names = _parallel(texts(context, "segment/label/string"), count, "segment/label/string", "")
    captions = _parallel(
        texts(context, "segment/caption/string"), count, "segment/caption/string", ""
    )
    return _checked(tuple(map(Segment, starts, ends, labels, names, captions)), ())[0]


def get_boxes(context: Any) -> tuple[Box, ...]:
    """The boxes of a record; SchemaError when the keys contradict each other."""
    times = ints(context, "box/timestamp")
    if not times:
        return ()
    count = len(times)
    y1, x1, y2, x2 = (
        _parallel(floats(context, f"box/{edge}"), count, f"box/{edge}", None)
        for edge in ("y1", "x1", "y2", "x2")
    )
    tracks = _parallel(ints(context, "box/track"), count, "box/track", -1)
    counts = _parallel(ints(context, "box/label/count"), count, "box/label/count", 0)
    if any(number < 0 for number in counts):
        raise SchemaError(f"box/label/count has the value {min(counts)}")
    total = sum(counts)
    labels = _parallel(ints(context, "box/label/index"), total, "box/label/index", None)
    names = _parallel(texts(context, "box/label/string"), total, "box/label/string", "")
    bounds = list(itertools.accumulate(counts, initial=0))
    labels_of = [labels[low:high] for low, high in itertools.pairwise(bounds)]
    names_of = [names[low:high] for low, high in itertools.pairwise(bounds)]
    boxes = tuple(map(Box, times, y1, x1, y2, x2, labels_of, names_of, tracks))
    return _checked((), boxes)[1]


def _parallel(values: tuple[Any, ...], count: int, key: str, default: Any) -> tuple[Any, ...]:
    """The values of a key that must have `count`; a default may stand for a missing key."""
    if not values and default is not None:
        return (default,) * count
    if len(values) != count:
        raise SchemaError(f"{key} has {len(values)} values, {count} expected")
    return values


def _checked(
    segments: tuple[Segment, ...], boxes: tuple[Box, ...]
) -> tuple[tuple[Segment, ...], tuple[Box, ...]]:
    problem = check(segments, boxes)
    if problem:
        raise SchemaError(problem)
    return segments, boxes
