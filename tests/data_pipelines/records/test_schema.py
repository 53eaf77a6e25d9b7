"""The record schema: round trips, DMVR records, and bytes that are neither."""

import contextlib
import hashlib
import pickle
import struct

import pytest
import simplejpeg
from google.protobuf import descriptor_pool
from hypothesis import assume, given
from hypothesis import strategies as st

from data_pipelines.records import messages, schema
from data_pipelines.records.schema import Record, SchemaError, decode, encode
from tests.data_pipelines.ingest.clips import picture
from tests.data_pipelines.records.damage import damaged

JPEG = simplejpeg.encode_jpeg(picture(0), 90, "RGB", "420")


def make_record(**changes: object) -> Record:
    values: dict = {
        "media_id": 'clip "7", ü',
        "frames": (JPEG, JPEG + b"\0", b"third"),
        "timestamps_us": (0, 33367, 66733),
        "fps": 29.97,
        "height": 48,
        "width": 64,
        "source_height": 480,
        "source_width": 640,
        "labels": (3, 1),
        "label_names": ("sit", "jump"),
        "captions": ("a cat sits", "猫が座る"),
        "start_us": 5,
        "end_us": 100_000,
        "filename": "a/b, c.mp4",
        "extra": {"view": 2, "speed": 0.1, "actor": "Zoë"},
    }
    return Record(**{**values, **changes})


# An independent, minimal protobuf writer and reader, so that the descriptors of schema.py are
# not tested against themselves.
def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def bytes_feature(*values: bytes) -> bytes:
    return message(1, b"".join(message(1, value) for value in values))


def float_feature(*values: float) -> bytes:
    return message(2, message(1, struct.pack(f"<{len(values)}f", *values)))


def int_feature(*values: int) -> bytes:
    return message(3, message(1, b"".join(map(varint, values))))


def sequence_example(context: dict[str, bytes], lists: dict[str, list[bytes]]) -> bytes:
    def entry(key: str, content: bytes) -> bytes:
        return message(1, message(1, key.encode()) + message(2, content))

    features = b"".join(entry(key, value) for key, value in context.items())
    feature_lists = b"".join(
        entry(key, b"".join(message(1, step) for step in steps)) for key, steps in lists.items()
    )
    return message(1, features) + message(2, feature_lists)


def fields(data: bytes) -> list[tuple[int, bytes | int]]:
    result: list[tuple[int, bytes | int]] = []
    position = 0

    def read() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(data):
        tag = read()
        if tag & 7 == 2:
            size = read()
            result.append((tag >> 3, data[position : position + size]))
            position += size
        else:
            assert tag & 7 == 0
            result.append((tag >> 3, read()))
    return result


def test_round_trip_keeps_every_field():
    record = make_record()
    assert decode(encode(record)) == record


def test_minimal_record_round_trips():
    record = Record("x", (JPEG,), (0,), 1.0, 48, 64)
    assert decode(encode(record)) == record


def test_equal_records_give_equal_bytes_whatever_the_order_of_extras():
    extra = {"a": 1, "b": 2.5, "c": "x"}
    other = dict(reversed(extra.items()))
    assert encode(make_record(extra=extra)) == encode(make_record(extra=other))


def test_bytes_are_the_same_in_every_version():
    """A resumed ingest must give the shards an uninterrupted one would have given."""
    data = encode(make_record(frames=(b"one", b"two", b"three")))
    assert hashlib.sha256(data).hexdigest() == (
        "dbf1f4cdf213eb5d9519a289bfcdfc4d9e6bc13cc45011f915cab72e5bb87418"
    )


def test_written_keys_are_those_of_dmvr():
    (_, context), (_, lists) = fields(encode(make_record()))
    keys = {}
    for _, entry in fields(context):  # type: ignore[arg-type]
        (_, key), (_, feature) = fields(entry)  # type: ignore[arg-type]
        [(kind, values)] = fields(feature)  # type: ignore[arg-type]
        keys[key.decode()] = (kind, fields(values))  # type: ignore[union-attr, arg-type]
    assert keys["clip/label/index"] == (3, [(1, bytes([3, 1]))])  # packed int64
    assert keys["clip/label/text"] == (1, [(1, b"sit"), (1, b"jump")])
    assert keys["caption/string"][1][1][1].decode() == "猫が座る"
    assert keys["video/fps"] == (2, [(1, struct.pack("<f", 29.97))])
    assert keys["clip/end/timestamp"] == (3, [(1, varint(100_000))])
    names = [fields(entry)[0][1] for _, entry in fields(lists)]  # type: ignore[arg-type]
    assert names == [b"image/encoded", b"image/timestamp"]


def test_plain_dmvr_record_gets_defaults():
    data = sequence_example(
        {
            "clip/label/index": int_feature(4),
            "clip/label/text": bytes_feature(b"run"),
            "clip/start/timestamp": int_feature(1_000_000),
            "clip/end/timestamp": int_feature(1_300_000),
            "WAVEFORM/sample_rate": float_feature(44100.0),
            "segment/label/string": bytes_feature(b"not", b"ours"),
        },
        {
            "image/encoded": [bytes_feature(JPEG)] * 3,
            "WAVEFORM/feature/floats": [float_feature(0.0, 0.5)],
        },
    )
    record = decode(data)
    assert record.media_id == "" and record.labels == (4,) and record.label_names == ("run",)
    assert record.media_type == "video" and record.segments == () and record.boxes == ()
    assert record.audio is not None
    assert (record.audio.sample_rate, record.audio.start_us) == (44_100, 1_000_000)
    assert list(record.audio.samples) == [0, 16384]
    assert (record.height, record.width) == (48, 64)
    assert record.fps == pytest.approx(10.0)
    assert list(record.timestamps_us) == [1_000_000, 1_100_000, 1_200_000]


def test_dmvr_record_without_times_runs_at_the_rate_of_its_generator():
    record = decode(sequence_example({}, {"image/encoded": [bytes_feature(JPEG)] * 2}))
    assert record.fps == schema.DMVR_FPS
    assert list(record.timestamps_us) == [0, 100_000]


@pytest.mark.parametrize(
    ("context", "lists", "complaint"),
    [
        ({"video/fps": float_feature(5.0)}, {}, "no image/encoded frames; keys found: video/fps"),
        ({}, {"image/encoded": []}, "no image/encoded"),
        ({}, {"image/encoded": [int_feature(1)]}, "exactly one JPEG"),
        ({}, {"image/encoded": [bytes_feature(JPEG, JPEG)]}, "exactly one JPEG"),
        ({}, {"image/encoded": [bytes_feature(b"not a jpeg")]}, "first frame is not a JPEG"),
        (
            {"video/num_frames": int_feature(3)},
            {"image/encoded": [bytes_feature(JPEG)]},
            "says 3, image/encoded has 1",
        ),
        (
            {},
            {"image/encoded": [bytes_feature(JPEG)], "image/timestamp": [int_feature(1)] * 2},
            "image/timestamp has 2 values for 1 frames",
        ),
        (
            {"video/fps": float_feature(-1.0)},
            {"image/encoded": [bytes_feature(JPEG)]},
            "must be positive",
        ),
        (
            {"schema/version": int_feature(schema.NEWEST_VERSION + 1)},
            {"image/encoded": [bytes_feature(JPEG)]},
            "schema version 3, this program reads up to 2",
        ),
    ],
)
def test_unusable_records_are_explained(context, lists, complaint):
    with pytest.raises(SchemaError, match=complaint):
        decode(sequence_example(context, lists))


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"plain text, not a record", JPEG])
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(SchemaError):
        decode(data)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"frames": (), "timestamps_us": ()}, "has no frames"),
        ({"timestamps_us": (0, 1)}, "2 timestamps for 3 frames"),
        ({"timestamps_us": (0, 5, 5)}, "strictly increasing"),
        ({"label_names": ("sit",)}, "1 label names for 2 labels"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"extra": {"x": [1]}}, "'x' is a list"),
        ({"extra": {"x": True}}, "'x' is a bool"),
        ({"extra": {"x": 2**63}}, "does not fit 64 bits"),
        ({"timestamps_us": (0, 1, 2**63)}, "does not fit 64 bits"),
        ({"labels": (2**70, 1)}, "does not fit 64 bits"),
    ],
)
def test_records_that_contradict_themselves_are_not_written(changes, complaint):
    with pytest.raises(SchemaError, match=complaint):
        encode(make_record(**changes))


def test_frames_are_a_lazy_sequence():
    record = decode(encode(make_record()))
    assert record.frames[1] == JPEG + b"\0" and record.frames[-1] == b"third"
    assert record.frames[1:] == (JPEG + b"\0", b"third")
    assert b"third" in record.frames and len(list(record.frames)) == 3
    with pytest.raises(IndexError):
        record.frames[3]
    assert JPEG[:4].hex() not in repr(record)


def test_decoded_record_can_be_pickled():
    record = decode(encode(make_record()))
    assert pickle.loads(pickle.dumps(record)) == record


def test_file_names_that_are_not_utf8_survive():
    name = b"clip \xff\xfe.mp4".decode("utf-8", "surrogateescape")
    assert decode(encode(make_record(filename=name))).filename == name


def test_default_descriptor_pool_stays_clean():
    """TensorFlow registers the same message names there; a second definition would clash."""
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("data_pipelines/sequence_example.proto")


@given(st.binary(max_size=200))
def test_fuzz_arbitrary_bytes(data):
    with contextlib.suppress(SchemaError):
        decode(data)


VALID = encode(make_record(frames=(JPEG[:700],) * 3, height=48))


@given(damaged(VALID))
def test_fuzz_damaged_records(data):
    try:
        record = decode(data)
    except SchemaError:
        return
    assert len(record.frames) == len(record.timestamps_us)
    assert all(isinstance(frame, bytes) for frame in record.frames)
    assert record.fps > 0 and record.height > 0 and record.width > 0


@given(
    values=st.lists(st.binary(max_size=300), max_size=5),
    others=st.dictionaries(st.text(max_size=200), st.lists(st.binary(max_size=9)), max_size=4),
    key=st.text(min_size=1, max_size=200),
)
def test_serialised_as_protobuf_does(values, others, key):
    """Sizes on both sides of 128, where a length takes a second byte."""
    names = [name.encode() for name in {*others, key}]
    # Protobuf has an order of its own for a name and its beginning; no two of ours are like that.
    assume(not any(a != b and a.startswith(b) for a in names for b in names))
    message = messages.SequenceExample()
    messages.put_texts(message.context.feature, "name", "value")
    messages.put_ints(message.context.feature, "a number", 1)
    for name, features in others.items():
        if name != key:
            feature_list = message.feature_lists.feature_list[name].feature
            for value in features:
                feature_list.add().bytes_list.value.append(value)
    found = messages.serialize(message, key, values)
    whole = message.feature_lists.feature_list[key].feature
    for value in values:
        whole.add().bytes_list.value.append(value)
    assert found == message.SerializeToString(deterministic=True)
