"""Slicing serialised records and packing frame tables, against protobuf's own view."""

import dataclasses
import struct

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.records import frame_table, schema
from data_pipelines.records.frame_table import FrameTableError, pack, unpack
from data_pipelines.records.wire import slice_record
from tests.data_pipelines.records.shards import CHANGES, changed
from tests.data_pipelines.records.test_schema import (
    JPEG,
    bytes_feature,
    make_record,
    message,
    varint,
)

DATA = schema.encode(make_record())
MANY = schema.encode(make_record(frames=(JPEG, b"", b"x" * 300) * 20, timestamps_us=range(60)))


def features(**values: bytes) -> bytes:
    return b"".join(
        message(1, message(1, key.encode()) + message(2, value)) for key, value in values.items()
    )


def steps(*frames: bytes) -> bytes:
    return b"".join(message(1, bytes_feature(frame)) for frame in frames)


@pytest.mark.parametrize("data", [DATA, MANY])
def test_layout_finds_what_protobuf_finds(data):
    record, layout = schema.decode(data), slice_record(data)
    cut = [data[at : at + size] for at, size in layout.frames]
    assert cut == list(record.frames)
    at, size = layout.context
    lists = {key: schema.parse_list(data[a : a + n]) for key, (a, n) in layout.lists.items()}
    times = schema.list_ints(lists["image/timestamp"])
    assert times == tuple(record.timestamps_us)
    again = schema.decode_parts(data[at : at + size], lists, cut, times)
    assert dataclasses.replace(again, frames=record.frames) == record
    assert schema.decode_parts(data[at : at + size], lists, cut, None) == again


def test_a_record_of_another_writer_without_a_context():
    data = message(2, features(**{"image/encoded": steps(b"a", b"bc"), "other": steps(b"z")}))
    layout = slice_record(data)
    assert layout.context == (0, 0) and list(layout.lists) == ["other"]
    assert [data[at : at + size] for at, size in layout.frames] == [b"a", b"bc"]


IMAGES = features(**{"image/encoded": steps(b"a")})
BAD = {
    "empty": (b"", "no feature lists"),
    "text": (b"plain text, no record", "expected the field tag"),
    "no lists": (message(1, b""), "no feature lists"),
    "no frames": (message(2, features(other=steps(b"a"))), "no image/encoded"),
    "empty frames": (message(2, features(**{"image/encoded": b""})), "no image/encoded"),
    "frames twice": (message(2, IMAGES + IMAGES), "there twice"),
    "lists twice": (message(2, IMAGES) + message(2, IMAGES), "bytes after the feature lists"),
    "context twice": (message(1, b"") * 2 + message(2, IMAGES), "expected the field tag"),
    "two values in a step": (
        message(2, features(**{"image/encoded": message(1, bytes_feature(b"a", b"b"))})),
        "exactly one JPEG",
    ),
    "integers in a step": (
        message(2, features(**{"image/encoded": message(1, message(3, b"\x0a\x01\x05"))})),
        "expected the field tag",
    ),
    "value before key": (
        message(2, message(1, message(2, steps(b"a")) + message(1, b"image/encoded"))),
        "expected the field tag",
    ),
    "key that is no text": (
        message(2, message(1, message(1, b"\xff") + message(2, b""))),
        "not text",
    ),
    "cut": (DATA[:-1], "are left"),
    "endless length": (b"\x12" + b"\xff" * 20, "cut or too long"),
    "huge length": (b"\x12" + varint(2**62), "are left"),
    "length without an end": (b"\x12\x80", "cut or too long"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_bytes_are_refused_and_have_no_table(name):
    data, complaint = BAD[name]
    with pytest.raises(schema.SchemaError, match=complaint):
        slice_record(data)
    assert pack(data, 0) == (b"", 0)


def test_table_round_trip():
    block, frames = pack(DATA, 77)
    table = unpack(block, len(DATA))
    assert frames == len(table.frames) == 3 and table.data_crc == 77
    assert list(table.lists) == ["image/timestamp"]
    for part in (table.context, *table.frames, *table.lists.values()):
        at, size, crc = map(int, part.tolist())
        assert google_crc32c.value(DATA[at : at + size]) == crc


def repaired(block: bytes) -> bytes:
    return block[:-4] + struct.pack("<I", google_crc32c.value(block[:-4]))


BLOCK = pack(DATA, 77)[0]


def field(offset: int, kind: str, value: int) -> bytes:
    data = bytearray(BLOCK)
    struct.pack_into(kind, data, offset, value)
    return repaired(bytes(data))


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (b"", "too short"),
        (BLOCK[:-1], "checksum of the frame table"),
        (BLOCK[:9] + b"\1" + BLOCK[10:], "checksum of the frame table"),
        (field(0, "<I", 0), "do not fit"),
        (field(0, "<I", 2**32 - 1), "do not fit"),
        (field(4, "<I", 2**32 - 1), "do not fit"),
        (field(4, "<I", 0), "for 0 lists"),
        (field(8, "<Q", 5), "of a record of 5 bytes"),
        (field(20, "<Q", 2**64 - 1), "outside"),
        (field(36, "<Q", len(DATA)), "outside"),
        (repaired(BLOCK[:-5] + b"x" + BLOCK[-4:]), "0 names|1 names"),
        (repaired(BLOCK[:-8] + b"\xff" + BLOCK[-7:]), "not text"),
    ],
)
def test_damaged_tables_are_refused(block, complaint):
    with pytest.raises(FrameTableError, match=complaint):
        unpack(block, len(DATA))


@given(st.binary(max_size=400))
def test_fuzz_arbitrary_bytes(data):
    """What has a layout is a record to protobuf too, with the same frames."""
    try:
        layout = slice_record(data)
    except schema.SchemaError:
        return
    assert all(at + size <= len(data) for at, size in layout.frames)


@given(changes=CHANGES, length=st.integers(0, 2 * len(DATA)))
def test_fuzz_changed_records(changes, length):
    data = changed(DATA, changes, length)
    try:
        layout = slice_record(data)
    except schema.SchemaError:
        return
    try:
        record = schema.decode(data)
    except schema.SchemaError:
        return
    assert [data[at : at + size] for at, size in layout.frames] == list(record.frames)


@given(changes=CHANGES, length=st.integers(0, len(BLOCK)), keep=st.booleans())
def test_fuzz_tables_with_a_valid_checksum(changes, length, keep):
    block = changed(BLOCK, changes, len(BLOCK) if keep else length)
    block = repaired(block) if len(block) > 4 else block
    try:
        table = unpack(block, len(DATA))
    except FrameTableError:
        return
    assert all(int(part["offset"]) + int(part["length"]) <= len(DATA) for part in table.frames)
    assert frame_table.PART.itemsize == 16
