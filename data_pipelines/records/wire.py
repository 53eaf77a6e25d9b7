"""Where the parts of a serialised `tf.train.SequenceExample` lie, without parsing it.

The protobuf wire format (https://protobuf.dev/programming-guides/encoding) nests messages as
tag, length, content, so the bytes of one frame can be located by walking over the lengths. Only the
form every protobuf implementation writes is accepted: one context, one set of feature lists, the
keys of a map before their values and none of them twice. A record in another valid form is refused
here and has to be read whole.
"""

from dataclasses import dataclass

from data_pipelines.records.schema import SchemaError

FRAMES_KEY = "image/encoded"

# Tag bytes of length-delimited fields: number << 3 | 2.
_FIRST, _SECOND = 0x0A, 0x12

Extent = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """Extents, (offset, length) in bytes from the start of the record.

    Attributes:
      context: the `Features` message; (0, 0) when the record has none.
      lists: key -> `FeatureList` message, of all keys but the frames'.
      frames: the encoded image of every frame, in order; at least one.
    """

    context: Extent
    lists: dict[str, Extent]
    frames: list[Extent]


def slice_record(data: bytes) -> RecordLayout:
    """Locate the parts of a record.

    Raises:
      SchemaError: the bytes are no SequenceExample, hold no frames, or have an unusual form.
    """
    context: Extent = (0, 0)
    lists: dict[str, Extent] = {}
    frames: list[Extent] | None = None
    at, end = 0, len(data)
    if at < end and data[at] == _FIRST:
        at, stop = _field(data, at, end, _FIRST)
        context = (at, stop - at)
        at = stop
    if at == end:
        raise SchemaError("record has no feature lists, so no image/encoded frames")
    at, stop = _field(data, at, end, _SECOND)
    if stop != end:
        raise SchemaError(f"{end - stop} bytes after the feature lists")
    while at < end:
        at, stop = _field(data, at, end, _FIRST)
        key_at, key_end = _field(data, at, stop, _FIRST)
        try:
            key = data[key_at:key_end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise SchemaError(f"a feature list has a name that is not text ({error})") from error
        value: Extent = (key_end, key_end)
        if key_end != stop:
            value = _field(data, key_end, stop, _SECOND)
            if value[1] != stop:
                raise SchemaError(f"feature list {key!r} is followed by another field")
        if "\0" in key or key in lists or (key == FRAMES_KEY and frames is not None):
            raise SchemaError(f"feature list {key!r} is there twice, or has no plain name")
        if key == FRAMES_KEY:
            frames = _steps(data, *value)
        else:
            lists[key] = (value[0], value[1] - value[0])
        at = stop
    if not frames:
        raise SchemaError("record has no image/encoded frames")
    return RecordLayout(context, lists, frames)


def _steps(data: bytes, at: int, end: int) -> list[Extent]:
    """One bytes value per step: FeatureList > Feature > BytesList > value."""
    steps = []
    while at < end:
        at, stop = _field(data, at, end, _FIRST)
        for _ in range(2):
            at, inner = _field(data, at, stop, _FIRST)
            if inner != stop:
                raise SchemaError(
                    "image/encoded must hold exactly one JPEG or PNG (bytes) per step"
                )
        steps.append((at, stop - at))
        at = stop
    return steps


def _field(data: bytes, at: int, end: int, tag: int) -> Extent:
    """(first byte, byte behind the last) of the content of the length-delimited field at `at`."""
    if at >= end or data[at] != tag:
        found = f"{data[at]:#04x}" if at < end else "the end"
        raise SchemaError(f"byte {at} of the record is {found}, expected the field tag {tag:#04x}")
    at += 1
    length = shift = 0
    while True:
        if at >= end or shift > 63:
            raise SchemaError(f"the length at byte {at} of the record is cut or too long")
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if length > end - at:
        raise SchemaError(f"a field of {length} bytes at byte {at}, {end - at} are left")
    return at, at + length
