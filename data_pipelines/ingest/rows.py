"""One row of a source: what to decode and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from data_pipelines.records.conversation import Turn


class RowSegment(NamedTuple):
    """A span in seconds of the source video, with a class name, a text, or both."""

    start: float
    end: float
    label: str = ""
    caption: str = ""


class RowBox(NamedTuple):
    """A rectangle at a time in seconds of the source video; edges as shares of the image."""

    time: float
    y1: float
    x1: float
    y2: float
    x2: float
    labels: tuple[str, ...] = ()
    track: int = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One clip to make.

    Attributes:
      path: file to open.
      name: the file as the source lists it; printable.
      id: unique within its split.
      split: name of the split.
      labels: class names.
      captions: texts, none of them empty.
      start, end: seconds to cut at, None for the ends of the video.
      extra: further columns.
      segments, boxes: what happens when and where, in time order.
      turns: a conversation about it, in its order.
      where: place in the source, for messages.
      problem: why the row cannot become a record although the file may be fine.
    """

    path: str
    name: str
    id: str
    split: str
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    extra: Mapping[str, int | float | str] = field(default_factory=dict)
    segments: tuple[RowSegment, ...] = ()
    boxes: tuple[RowBox, ...] = ()
    turns: tuple[Turn, ...] = ()
    where: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The rows of a source; what was left out or looks odd, one sentence each; its class list.

    Most sources have no class list (empty); it is then made from the labels of the rows.
    """

    rows: list[Row]
    notes: list[str]
    classes: tuple[str, ...] = ()


def printable(text: str) -> str:
    """A file name that can be stored and shown; bytes that are not UTF-8 become escapes.

    For texts that people read there is `ingest.cells.text`.
    """
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON escapes can spell
        raw = text.encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "backslashreplace")
