"""The record schema: one clip as a ``tf.train.SequenceExample``, with its version.

Writer and reader share this file. The keys are those of DMVR, which existing JAX video projects
read and write, so their shards load here and ours load there; a few keys of our own follow the
same naming. Messages are built from descriptors at import, in a pool of their own: no generated
code to keep in step with the protobuf runtime, and no clash with a TensorFlow that registered
the same message names in the default pool.

Keys (context unless said otherwise):

=============================  ========  =====================================================
``clip/media_id``              bytes     stable id of the clip
``clip/label/index``           int64     class indices, any number of them
``clip/label/text``            bytes     class names, parallel to the indices
``caption/string``             bytes     captions, any number of them
``video/filename``             bytes     source file, as listed
``clip/start|end/timestamp``   int64     microseconds in the source video
``video/fps``                  float     rate of the stored frames
``video/height|width``         int64     stored size in pixels
``video/source_height|width``  int64     size before resizing, after display rotation
``video/num_frames``           int64     number of steps of ``image/encoded``
``schema/version``             int64     ``SCHEMA_VERSION`` of the writer
``extra/NAME``                 any       one value of an annotation column
``image/encoded``              sequence  bytes: one JPEG per step
``image/timestamp``            sequence  int64: microseconds in the source video
=============================  ========  =====================================================

Unknown keys are ignored, so a later version can add audio, segments or boxes beside these
without a new ``SCHEMA_VERSION``; the version grows only when the meaning of an existing key
changes.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import simplejpeg
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

SCHEMA_VERSION = 1

# What a record without `video/fps` is taken to run at: the rate DMVR's own generator extracts.
DMVR_FPS = 10.0

_INT64 = range(-(2**63), 2**63)


class SchemaError(ValueError):
    """A record that cannot be written or understood."""


@dataclass(frozen=True, slots=True)
class Record:
    """One clip: the decoded view of a record.

    Attributes:
      media_id: stable id of the clip; empty when the writer stored none (plain DMVR).
      frames: JPEG bytes in display order, at least one.
      timestamps_us: one per frame, strictly increasing, microseconds from the start of the
        clip's source video.
      fps: rate of the stored frames.
      height, width: stored size in pixels.
      source_height, source_width: size before resizing, 0 when unknown.
      labels: class indices; several for multi-label data, none for unlabelled data.
      label_names: class names, parallel to ``labels`` or empty.
      captions: any number of texts.
      start_us, end_us: the span of the source video this clip covers.
      filename: the source file as the ingest listed it.
      extra: further annotation columns by name. Floats are stored in single precision.
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


def _build_message_classes() -> tuple[Any, ...]:
    """``tensorflow.SequenceExample`` and two of its parts, wire compatible with TensorFlow's."""
    file = descriptor_pb2.FileDescriptorProto(
        name="data_pipelines/sequence_example.proto", package="tensorflow", syntax="proto3"
    )
    one, many = 1, 3  # LABEL_OPTIONAL, LABEL_REPEATED
    int64, single, text, message, raw = 3, 2, 9, 11, 12  # descriptor type numbers

    def message_type(name: str) -> Any:
        return file.message_type.add(name=name)

    def add(owner: Any, name: str, number: int, label: int, kind: int, of: str = "") -> Any:
        result = owner.field.add(name=name, number=number, label=label, type=kind)
        if of:
            result.type_name = f".tensorflow.{of}"
        return result

    def add_map(owner: Any, name: str, number: int, of: str) -> None:
        entry = owner.nested_type.add(name="".join(w.title() for w in name.split("_")) + "Entry")
        entry.options.map_entry = True
        add(entry, "key", 1, one, text)
        add(entry, "value", 2, one, message, of)
        add(owner, name, number, many, message, f"{owner.name}.{entry.name}")

    add(message_type("BytesList"), "value", 1, many, raw)
    add(message_type("FloatList"), "value", 1, many, single).options.packed = True
    add(message_type("Int64List"), "value", 1, many, int64).options.packed = True
    feature = message_type("Feature")
    feature.oneof_decl.add(name="kind")
    kinds = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
    for number, (name, of) in enumerate(kinds, start=1):
        add(feature, name, number, one, message, of).oneof_index = 0
    add_map(message_type("Features"), "feature", 1, "Feature")
    add(message_type("FeatureList"), "feature", 1, many, message, "Feature")
    add_map(message_type("FeatureLists"), "feature_list", 1, "FeatureList")
    example = message_type("SequenceExample")
    add(example, "context", 1, one, message, "Features")
    add(example, "feature_lists", 2, one, message, "FeatureLists")

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.{name}"))
        for name in ("SequenceExample", "Features", "FeatureList")
    )


_SequenceExample, _Features, _FeatureList = _build_message_classes()


class _FrameView(Sequence[bytes]):
    """The JPEG bytes inside a parsed message; a frame is copied out only when asked for.

    A clip of 300 frames is 6 MB and training reads 16 frames of it.
    """

    __slots__ = ("_steps",)

    def __init__(self, steps: Any):
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, index: int | slice) -> bytes | tuple[bytes, ...]:
        if isinstance(index, slice):
            return tuple(step.bytes_list.value[0] for step in self._steps[index])
        return self._steps[index].bytes_list.value[0]

    def __iter__(self) -> Iterator[bytes]:
        return (step.bytes_list.value[0] for step in self._steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return (tuple, (list(self),))

    def __repr__(self) -> str:
        return f"<{len(self)} JPEG frames>"


def encode(record: Record) -> bytes:
    """Serialise a record; equal records give equal bytes.

    Raises:
      SchemaError: no frames, timestamps that do not match the frames or do not increase,
        label names that do not match the labels, or a value no feature can hold.
    """
    _check(record)
    message = _SequenceExample()
    context = message.context.feature

    def put_text(key: str, *values: str) -> None:
        # surrogateescape keeps file names that are not valid UTF-8 byte for byte.
        context[key].bytes_list.value.extend(
            [value.encode("utf-8", "surrogateescape") for value in values]
        )

    def put_int(key: str, *values: int) -> None:
        context[key].int64_list.value.extend([int(value) for value in values])

    put_int("schema/version", SCHEMA_VERSION)
    put_text("clip/media_id", record.media_id)
    put_int("clip/label/index", *record.labels)
    put_text("clip/label/text", *record.label_names)
    put_text("caption/string", *record.captions)
    put_text("video/filename", record.filename)
    put_int("clip/start/timestamp", record.start_us)
    put_int("clip/end/timestamp", record.end_us)
    context["video/fps"].float_list.value.append(record.fps)
    put_int("video/height", record.height)
    put_int("video/width", record.width)
    put_int("video/source_height", record.source_height)
    put_int("video/source_width", record.source_width)
    put_int("video/num_frames", len(record.frames))
    for name, value in record.extra.items():
        if isinstance(value, str):
            put_text(f"extra/{name}", value)
        elif isinstance(value, int):
            put_int(f"extra/{name}", value)
        else:
            context[f"extra/{name}"].float_list.value.append(value)
    images = message.feature_lists.feature_list["image/encoded"].feature
    times = message.feature_lists.feature_list["image/timestamp"].feature
    for frame, time_us in zip(record.frames, record.timestamps_us, strict=True):
        images.add().bytes_list.value.append(frame)
        times.add().int64_list.value.append(int(time_us))
    return message.SerializeToString(deterministic=True)


def _check(record: Record) -> None:
    where = f"record {record.media_id!r}"
    if not record.frames:
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
    if any(number not in _INT64 for number in numbers):
        raise SchemaError(f"{where}: a label or time does not fit 64 bits")
    for name, value in record.extra.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise SchemaError(
                f"{where}: extra column {name!r} is a {type(value).__name__}; "
                "int, float or str can be stored"
            )
        if isinstance(value, int) and value not in _INT64:
            raise SchemaError(f"{where}: extra column {name!r} = {value} does not fit 64 bits")


def decode(data: bytes) -> Record:
    """Parse a record of ours, or a plain DMVR one.

    What DMVR leaves out gets a default: the id is empty, the size is read from the first JPEG,
    the rate follows from the start and end timestamps (else ``DMVR_FPS``) and frame times are
    equally spaced. ``frames`` is a lazy view: a frame is copied when it is indexed.

    Raises:
      SchemaError: the bytes are not a SequenceExample, have no ``image/encoded``, disagree
        with themselves, or were written by a newer schema version.
    """
    message = _SequenceExample()
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
    """The record whose parts are read separately; otherwise as :func:`decode`.

    Args:
      context: the serialised ``Features`` message.
      lists: key -> parsed feature list (:func:`parse_list`), without the frames.
      frames: taken as they are, and so are ``timestamps_us`` unless None.

    Raises:
      SchemaError: as :func:`decode`.
    """
    message = _Features()
    try:
        message.ParseFromString(context)
    except DecodeError as error:
        raise SchemaError(f"the context of the record is no Features message ({error})") from error
    return _understand(message.feature, lists, frames, timestamps_us)


def parse_list(data: bytes) -> Any:
    """A serialised ``FeatureList`` as a message. Raises SchemaError."""
    message = _FeatureList()
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
    if version > SCHEMA_VERSION:
        raise SchemaError(
            f"record has schema version {version}, this program reads up to {SCHEMA_VERSION}; "
            "update the program or ingest the videos again"
        )
    if frames is None:
        steps = lists["image/encoded"].feature if "image/encoded" in lists else ()
        if not steps:
            keys = ", ".join(sorted([*context, *lists])) or "none"
            raise SchemaError(f"record has no image/encoded frames; keys found: {keys}")
        if any(len(step.bytes_list.value) != 1 for step in steps):
            raise SchemaError("image/encoded must hold exactly one JPEG (bytes) per step")
        frames = _FrameView(steps)
    stored = _int(context, "video/num_frames", len(frames))
    if stored != len(frames):
        raise SchemaError(f"video/num_frames says {stored}, image/encoded has {len(frames)}")

    start_us = _int(context, "clip/start/timestamp", 0)
    end_us = _int(context, "clip/end/timestamp", 0)
    fps = _fps(context, len(frames), end_us - start_us)
    height = _int(context, "video/height", 0)
    width = _int(context, "video/width", 0)
    if not (height > 0 and width > 0):
        height, width = _jpeg_size(frames[0])
    return Record(
        media_id="".join(_texts(context, "clip/media_id")[:1]),
        frames=frames,
        timestamps_us=_timestamps(lists, len(frames), start_us, fps)
        if timestamps_us is None
        else timestamps_us,
        fps=fps,
        height=height,
        width=width,
        source_height=_int(context, "video/source_height", 0),
        source_width=_int(context, "video/source_width", 0),
        labels=tuple(context["clip/label/index"].int64_list.value)
        if "clip/label/index" in context
        else (),
        label_names=_texts(context, "clip/label/text"),
        captions=_texts(context, "caption/string"),
        start_us=start_us,
        end_us=end_us,
        filename="".join(_texts(context, "video/filename")[:1]),
        extra=_extra(context),
    )


def _int(context: Any, key: str, default: int) -> int:
    # Indexing a protobuf map creates a missing key, hence the membership tests in this file.
    values = context[key].int64_list.value if key in context else ()
    return int(values[0]) if values else default


def _texts(context: Any, key: str) -> tuple[str, ...]:
    values = context[key].bytes_list.value if key in context else ()
    return tuple(value.decode("utf-8", "surrogateescape") for value in values)


def _shortest(value: float) -> float:
    """The decimal a single-precision value was written as: 29.97, not 29.969999313354492."""
    return float(str(np.float32(value)))


def _fps(context: Any, num_frames: int, span_us: int) -> float:
    values = context["video/fps"].float_list.value if "video/fps" in context else ()
    if values:
        fps = _shortest(values[0])
        if not 0 < fps < float("inf"):
            raise SchemaError(f"video/fps is {fps}; it must be positive")
        return fps
    return num_frames * 1e6 / span_us if span_us > 0 else DMVR_FPS


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(frame)
    except ValueError as error:
        raise SchemaError(f"the first frame is not a JPEG ({error})") from error
    return int(height), int(width)


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
            result[name] = _shortest(feature.float_list.value[0])
        elif feature.bytes_list.value:
            result[name] = feature.bytes_list.value[0].decode("utf-8", "surrogateescape")
    return result
