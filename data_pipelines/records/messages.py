"""The `tf.train.SequenceExample` message and short ways to its features.

Built from descriptors at import, in a pool of its own: no generated code to keep in step with
the protobuf runtime, and no clash with a TensorFlow that registered the same message names in the
default pool.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INT64 = range(-(2**63), 2**63)


class SchemaError(ValueError):
    """A record that cannot be written or understood."""


def _build_message_classes() -> tuple[Any, ...]:
    """`tensorflow.SequenceExample` and two of its parts, wire compatible with TensorFlow's."""
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


SequenceExample, Features, FeatureList = _build_message_classes()


def ints(features: Any, key: str) -> tuple[int, ...]:
    """The values of an int64 feature; none when the key is missing."""
    # Indexing a protobuf map creates a missing key, hence the membership tests here.
    return tuple(features[key].int64_list.value) if key in features else ()


def floats(features: Any, key: str) -> tuple[float, ...]:
    """The values of a float feature, each as the decimal it was written as."""
    return tuple(map(shortest, features[key].float_list.value)) if key in features else ()


def texts(features: Any, key: str) -> tuple[str, ...]:
    """The values of a bytes feature as text; bytes that are not UTF-8 survive a round trip."""
    values = features[key].bytes_list.value if key in features else ()
    return tuple(value.decode("utf-8", "surrogateescape") for value in values)


def put_ints(features: Any, key: str, *values: int) -> None:
    """Append to an int64 feature."""
    features[key].int64_list.value.extend([int(value) for value in values])


def put_floats(features: Any, key: str, *values: float) -> None:
    """Append to a float feature, in single precision."""
    features[key].float_list.value.extend(values)


def put_texts(features: Any, key: str, *values: str) -> None:
    """Append texts to a bytes feature."""
    # surrogateescape keeps file names that are not valid UTF-8 byte for byte.
    features[key].bytes_list.value.extend(
        [value.encode("utf-8", "surrogateescape") for value in values]
    )


def shortest(value: float) -> float:
    """The decimal a single-precision value was written as: 29.97, not 29.969999313354492."""
    return float(str(np.float32(value)))


def serialize(message: Any, key: str, values: Sequence[bytes]) -> bytes:
    """A sequence example and one more feature list, of a single bytes value per feature.

    The same bytes as `SerializeToString(deterministic=True)` of a message with that list in it, but
    the values are copied once, not into the message and through its growing buffer: a hundredth of
    the time for the frames of a video.
    """
    lists = message.feature_lists.feature_list
    entries = {other: _entry_of(other, lists[other].SerializeToString()) for other in lists}
    features: list[bytes] = []
    for value in values:
        # Feature{bytes_list{value}}, each head with the length of all that is in it.
        head = _head(_FIRST, len(value))
        head = _head(_FIRST, len(head) + len(value)) + head
        features += (_head(_FIRST, len(head) + len(value)), head, value)
    entries[key] = _entry_of(key, *features)
    parts = [part for name in sorted(entries, key=str.encode) for part in entries[name]]
    context = message.context.SerializeToString(deterministic=True)
    head = _head(_FIRST, len(context)) + context + _head(_SECOND, sum(map(len, parts)))
    return b"".join((head, *parts))


_FIRST, _SECOND = b"\x0a", b"\x12"  # tags of fields 1 and 2, with a length and then bytes


def _head(tag: bytes, size: int) -> bytes:
    """Tag and length of a field."""
    data = bytearray(tag)
    while size > 0x7F:
        data.append(size & 0x7F | 0x80)
        size >>= 7
    data.append(size)
    return bytes(data)


def _entry_of(key: str, *content: bytes) -> list[bytes]:
    """The map entry of a feature list, whose own bytes are `content`."""
    name = key.encode()
    name = _head(_FIRST, len(name)) + name
    head = name + _head(_SECOND, size := sum(map(len, content)))
    return [_head(_FIRST, len(head) + size), head, *content]
