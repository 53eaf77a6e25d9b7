"""The record schema: one clip as a `tf.train.SequenceExample`, with its version.

Writer and reader share this file. The keys are those of DMVR, which existing JAX video projects
read and write, so their shards load here and ours load there; a few keys of our own follow the
same naming.

Keys (context unless said otherwise):

=============================  ========  =====================================================
`clip/media_id`              bytes     stable id of the clip
`clip/label/index`           int64     class indices, any number of them
`clip/label/text`            bytes     class names, parallel to the indices
`caption/string`             bytes     captions, any number of them
`video/filename`             bytes     source file, as listed
`clip/start|end/timestamp`   int64     microseconds in the source video
`video/fps`                  float     rate of the stored frames
`video/height|width`         int64     stored size in pixels
`video/source_height|width`  int64     size before resizing, after display rotation
`video/num_frames`           int64     number of steps of `image/encoded`
`media/type`                 bytes     `records.media`; a video's record has no such key
`schema/version`             int64     1, or 2 with PNG frames (`version_of`)
`extra/NAME`                 any       one value of an annotation column
`image/encoded`              sequence  bytes: one JPEG or PNG per step
`image/timestamp`            sequence  int64: microseconds in the source video
`WAVEFORM/...`, `audio/`             see `records.waveform`
`segment/...`, `box/...`             see `records.localisation`
`turn/...`                           see `records.conversation`
=============================  ========  =====================================================

Unknown keys are ignored and missing ones have defaults, so content can be added beside these
without a new `SCHEMA_VERSION`; the version grows only when the meaning of an existing key
changes. Frames that are PNG are such a change: a record that has any says version 2, so that
programs that know JPEG alone refuse it in words, and all others stay what they were.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from google.protobuf.message import DecodeError

from data_pipelines.records import conversation, encoded, localisation, waveform
from data_pipelines.records.conversation import Turn
from data_pipelines.records.localisation import Box, Segment
from data_pipelines.records.media import STORED, needs_frames
from data_pipelines.records.messages import (
    INT64,
    FeatureList,
    Features,
    SchemaError,
    SequenceExample,
    floats,
    ints,
    put_floats,
    put_ints,
    put_texts,
    serialize,
    shortest,
    texts,
)
from data_pipelines.records.waveform import Waveform

__all__ = [
    "DMVR_FPS",
    "NEWEST_VERSION",
    "SCHEMA_VERSION",
    "Box",
    "Record",
    "SchemaError",
    "Segment",
    "Turn",
    "Waveform",
    "decode",
    "encode",
    "version_of",
]

SCHEMA_VERSION = 1  # of records whose frames are all JPEG
NEWEST_VERSION = 2  # of those with PNG among them, and the newest that is read

# What a record without `video/fps` is taken to run at: the rate DMVR's own generator extracts.
DMVR_FPS = 10.0


@dataclass(frozen=True, slots=True)
class Record:
    """One clip: the decoded view of a record.

    Attributes:
      media_id: stable id of the clip; empty when the writer stored none (plain DMVR).
      frames: JPEG or PNG bytes in display order, at least one where the media type has pixels.
      timestamps_us: one per frame, strictly increasing, microseconds from the start of the
        clip's source video.
      fps: rate of the stored frames.
      height, width: stored size in pixels.
      source_height, source_width: size before resizing, 0 when unknown.
      labels: class indices; several for multi-label data, none for unlabelled data.
      label_names: class names, parallel to `labels` or empty.
      captions: any number of texts.
      start_us, end_us: the span of the source video this clip covers.
      filename: the source file as listed.
      extra: further annotation columns by name; floats in single precision.
      media_type: `video`, `image` (one frame at time 0), `audio` or `features` (no frames needed).
      audio: the audio of the same span, None when the clip has none.
      segments, boxes, turns: what happens when, where, and a conversation about it.
    """

    media_id: str
    frames: Sequence[bytes]
    timestamps_us: Sequence[int]
    fps: float
    height: int
    width: int
    source_height: int = 0
    source_width: int = 0
    labels: tuple[int, ...] = ()
    label_names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    start_us: int = 0
    end_us: int = 0
    filename: str = ""
    extra: Mapping[str, int | float | str] = field(default_factory=dict)
    media_type: str = "video"
    audio: Waveform | None = None
    segments: tuple[Segment, ...] = ()
    boxes: tuple[Box, ...] = ()
    turns: tuple[Turn, ...] = ()

    def audio_window(self, start_us: int, end_us: int, samples: int) -> tuple[np.ndarray, int]:
        """The audio of a time window; see `records.waveform.Audio.window`.

        A clip without audio gives zeros, none of them valid.
        """
        if self.audio is None:
            return np.zeros(samples, np.float32), 0
        return self.audio.window(start_us, end_us, samples)


class EncodedFrames(Sequence[bytes]):
    """The encoded images of a record's frames, read only when asked for.

    A clip of 300 frames is 6 MB and training reads 16 frames of it. Equal to any sequence of the
    same bytes, and pickled as a tuple of them.
    """

    __slots__ = ()

    def fetch(self, numbers: Sequence[int]) -> list[bytes]:
        """Several frames at once, by numbers from 0."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, index: int | slice) -> bytes | tuple[bytes, ...]:
        if isinstance(index, slice):
            return tuple(self.fetch(range(len(self))[index]))
        return self.fetch([range(len(self))[index]])[0]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.fetch(range(len(self))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return (tuple, (list(self),))

    def __repr__(self) -> str:
        return f"<{len(self)} encoded frames>"


class _ParsedFrames(EncodedFrames):
    """Those inside a parsed message, which would copy all of them otherwise."""

    __slots__ = ("_steps",)

    def __init__(self, steps: Any):
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def fetch(self, numbers: Sequence[int]) -> list[bytes]:
        return [self._steps[number].bytes_list.value[0] for number in numbers]


def version_of(frames: Iterable[bytes]) -> int:
    """The schema version of a record with these frames."""
    return NEWEST_VERSION if any(map(encoded.is_png, frames)) else SCHEMA_VERSION


def encode(record: Record) -> bytes:
    """Serialise a record; equal records give equal bytes.

    Raises:
      SchemaError: no frames, timestamps that do not match the frames or do not increase,
        label names that do not match the labels, or a value no feature can hold.
    """
    _check(record)
    message = SequenceExample()
    context = message.context.feature
    put_ints(context, "schema/version", version_of(record.frames))
    put_texts(context, "clip/media_id", record.media_id)
    put_ints(context, "clip/label/index", *record.labels)
    put_texts(context, "clip/label/text", *record.label_names)
    put_texts(context, "caption/string", *record.captions)
    put_texts(context, "video/filename", record.filename)
    put_ints(context, "clip/start/timestamp", record.start_us)
    put_ints(context, "clip/end/timestamp", record.end_us)
    put_floats(context, "video/fps", record.fps)
    put_ints(context, "video/height", record.height)
    put_ints(context, "video/width", record.width)
    put_ints(context, "video/source_height", record.source_height)
    put_ints(context, "video/source_width", record.source_width)
    put_ints(context, "video/num_frames", len(record.frames))
    if record.media_type != "video":
        put_texts(context, "media/type", record.media_type)
    for name, value in record.extra.items():
        if isinstance(value, str):
            put_texts(context, f"extra/{name}", value)
        elif isinstance(value, int):
            put_ints(context, f"extra/{name}", value)
        else:
            put_floats(context, f"extra/{name}", value)
    localisation.put(context, record.segments, record.boxes)
    conversation.put(context, record.turns)
    if record.audio is not None:
        waveform.put(message, record.audio)
    times = message.feature_lists.feature_list["image/timestamp"].feature
    for time_us in record.timestamps_us:
        times.add().int64_list.value.append(int(time_us))
    return serialize(message, "image/encoded", record.frames)


def _check(record: Record) -> None:
    where = f"record {record.media_id!r}"
    if record.media_type not in STORED:
        raise SchemaError(
            f"{where}: media type {record.media_type!r}, expected {' or '.join(STORED)}"
        )
    if not record.frames and needs_frames(record.media_type):
        raise SchemaError(f"{where}: has no frames; a record needs at least one")
    if len(record.timestamps_us) != len(record.frames):
        raise SchemaError(
            f"{where}: {len(record.timestamps_us)} timestamps for {len(record.frames)} frames"
        )
    times = list(record.timestamps_us)
    if any(later <= earlier for earlier, later in itertools.pairwise(times)):
        raise SchemaError(f"{where}: timestamps_us must be strictly increasing")
    if record.label_names and len(record.label_names) != len(record.labels):
        raise SchemaError(
            f"{where}: {len(record.label_names)} label names for {len(record.labels)} labels"
        )
    if not record.fps > 0:
        raise SchemaError(f"{where}: fps is {record.fps}; it must be positive")
    numbers = [*times, *record.labels, record.start_us, record.end_us]
    if any(number not in INT64 for number in numbers):
        raise SchemaError(f"{where}: a label or time does not fit 64 bits")
    problem = localisation.check(record.segments, record.boxes) or conversation.check(record.turns)
    if not problem and record.audio is not None:
        problem = waveform.check(record.audio)
    if problem:
        raise SchemaError(f"{where}: {problem}")
    for name, value in record.extra.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise SchemaError(
                f"{where}: extra column {name!r} is a {type(value).__name__}; "
                "int, float or str can be stored"
            )
        if isinstance(value, int) and value not in INT64:
            raise SchemaError(f"{where}: extra column {name!r} = {value} does not fit 64 bits")


def decode(data: bytes) -> Record:
    """Parse a record of ours, or a plain DMVR one.

    What DMVR leaves out gets a default: the id is empty, the size is read from the first frame,
    the rate follows from the start and end timestamps (else `DMVR_FPS`) and frame times are
    equally spaced. `frames` is a lazy view: a frame is copied when it is indexed.

    Raises:
      SchemaError: the bytes are not a SequenceExample, have no `image/encoded`, disagree
        with themselves, or were written by a newer schema version.
    """
    message = SequenceExample()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise SchemaError(
            f"{len(data)} bytes are not a tf.train.SequenceExample ({error}); "
            "expected a record written by data_pipelines.ingest or by DMVR"
        ) from error
    return _understand(message.context.feature, message.feature_lists.feature_list)


def decode_parts(
    context: bytes,
    lists: Mapping[str, Any],
    frames: Sequence[bytes],
    timestamps_us: Sequence[int] | None,
) -> Record:
    """The record whose parts are read separately; otherwise as `decode`.

    Args:
      context: the serialised `Features` message.
      lists: key -> parsed feature list (`parse_list`), without the frames.
      frames: taken as they are, and so are `timestamps_us` unless None.

    Raises:
      SchemaError: as `decode`.
    """
    message = Features()
    try:
        message.ParseFromString(context)
    except DecodeError as error:
        raise SchemaError(f"the context of the record is no Features message ({error})") from error
    return _understand(message.feature, lists, frames, timestamps_us)


def parse_list(data: bytes) -> Any:
    """A serialised `FeatureList` as a message. Raises SchemaError."""
    message = FeatureList()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise SchemaError(f"not a FeatureList message ({error})") from error
    return message


def list_ints(message: Any) -> tuple[int, ...]:
    """All integers of a feature list, in order."""
    return tuple(int(value) for step in message.feature for value in step.int64_list.value)


def _understand(
    context: Any,
    lists: Mapping[str, Any],
    frames: Sequence[bytes] | None = None,
    timestamps_us: Sequence[int] | None = None,
) -> Record:
    version = _int(context, "schema/version", 0)
    if version > NEWEST_VERSION:
        raise SchemaError(
            f"record has schema version {version}, this program reads up to {NEWEST_VERSION}; "
            "update the program or ingest the videos again"
        )
    media_type = "".join(texts(context, "media/type")[:1]) or "video"
    if media_type not in STORED:
        raise SchemaError(f"media/type is {media_type!r}, expected {' or '.join(STORED)}")
    lazy = frames is not None
    if frames is None:
        steps = lists["image/encoded"].feature if "image/encoded" in lists else ()
        if not steps and needs_frames(media_type):
            keys = ", ".join(sorted([*context, *lists])) or "none"
            raise SchemaError(f"record has no image/encoded frames; keys found: {keys}")
        if any(len(step.bytes_list.value) != 1 for step in steps):
            raise SchemaError("image/encoded must hold exactly one JPEG or PNG (bytes) per step")
        frames = _ParsedFrames(steps)
    stored = _int(context, "video/num_frames", len(frames))
    if stored != len(frames):
        raise SchemaError(f"video/num_frames says {stored}, image/encoded has {len(frames)}")

    start_us = _int(context, "clip/start/timestamp", 0)
    end_us = _int(context, "clip/end/timestamp", 0)
    fps = _fps(context, len(frames), end_us - start_us)
    height = _int(context, "video/height", 0)
    width = _int(context, "video/width", 0)
    if frames and not (height > 0 and width > 0):
        height, width = _image_size(frames[0])
    if height * width > encoded.MAX_PIXELS:
        raise SchemaError(
            f"record has frames of {width}x{height} pixels, at most {encoded.MAX_PIXELS} are read"
        )
    return Record(
        media_id="".join(texts(context, "clip/media_id")[:1]),
        frames=frames,
        timestamps_us=_timestamps(lists, len(frames), start_us, fps)
        if timestamps_us is None
        else timestamps_us,
        fps=fps,
        height=height,
        width=width,
        source_height=_int(context, "video/source_height", 0),
        source_width=_int(context, "video/source_width", 0),
        labels=ints(context, "clip/label/index"),
        label_names=texts(context, "clip/label/text"),
        captions=texts(context, "caption/string"),
        start_us=start_us,
        end_us=end_us,
        filename="".join(texts(context, "video/filename")[:1]),
        extra=_extra(context),
        media_type=media_type,
        # Beside frames that are read one by one, a whole track would be most of the bytes.
        audio=waveform.get(context, lists, start_us, lazy=lazy),
        segments=localisation.get_segments(context),
        boxes=localisation.get_boxes(context),
        turns=conversation.get(context),
    )


def _int(context: Any, key: str, default: int) -> int:
    values = ints(context, key)
    return values[0] if values else default


def _fps(context: Any, num_frames: int, span_us: int) -> float:
    values = floats(context, "video/fps")
    if values:
        fps = values[0]
        if not 0 < fps < float("inf"):
            raise SchemaError(f"video/fps is {fps}; it must be positive")
        return fps
    return num_frames * 1e6 / span_us if span_us > 0 else DMVR_FPS


def _image_size(frame: bytes) -> tuple[int, int]:
    try:
        return encoded.size_of(frame)
    except ValueError as error:
        raise SchemaError(f"the first frame is not a JPEG or PNG ({error})") from error


def _timestamps(lists: Any, num_frames: int, start_us: int, fps: float) -> Sequence[int]:
    if "image/timestamp" not in lists:
        return tuple(start_us + round(i * 1e6 / fps) for i in range(num_frames))
    times = list_ints(lists["image/timestamp"])
    if len(times) != num_frames:
        raise SchemaError(f"image/timestamp has {len(times)} values for {num_frames} frames")
    return times


def _extra(context: Any) -> dict[str, int | float | str]:
    result: dict[str, int | float | str] = {}
    for key in sorted(context):
        if not key.startswith("extra/"):
            continue
        feature, name = context[key], key.removeprefix("extra/")
        if feature.int64_list.value:
            result[name] = int(feature.int64_list.value[0])
        elif feature.float_list.value:
            result[name] = shortest(feature.float_list.value[0])
        elif feature.bytes_list.value:
            result[name] = feature.bytes_list.value[0].decode("utf-8", "surrogateescape")
    return result
