"""The index file: round trips, contradictions and damage."""

import struct
import time
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.records.index import (
    ENTRY,
    UNKNOWN_FRAMES,
    CorruptRecordError,
    Index,
    IndexFileError,
    build_index,
    masked_crc,
    parse_index,
    read_index,
    write_index,
)
from tests.data_pipelines.records.shards import (
    CHANGES,
    FUZZ,
    changed,
    content,
    small_shard,
    write_shard,
)


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "a.tfrecord")


def test_index_round_trip(shard):
    index = read_index(shard)
    assert index.shard_bytes == shard.stat().st_size
    assert list(index.entries["frames"]) == list(range(1, 11))
    assert list(index.entries["length"]) == [len(content(i)) for i in range(10)]


def test_scanned_index_finds_the_same_records(shard):
    scanned, stored = build_index(shard), read_index(shard)
    for name in ("offset", "length"):
        assert np.array_equal(scanned.entries[name], stored.entries[name])
    assert set(scanned.entries["frames"]) == {UNKNOWN_FRAMES}
    assert scanned.shard_bytes == stored.shard_bytes


def test_index_of_a_million_records_loads_quickly(tmp_path):
    lengths = np.full(1_000_000, 1000, np.uint64)
    entries = np.zeros(len(lengths), ENTRY)
    entries["length"] = lengths
    entries["offset"][1:] = np.cumsum(lengths + np.uint64(16))[:-1]
    size = 1_000_000 * 1016
    write_index(tmp_path / "x", entries, size)
    began = time.perf_counter()
    index = read_index(tmp_path / "x")
    assert time.perf_counter() - began < 2.0
    assert np.array_equal(index.entries, entries)


def patched_index(shard: Path, **changes: int) -> bytes:
    """The index of a shard with header fields changed and a valid checksum."""
    data = bytearray((shard.parent / f"{shard.name}.idx").read_bytes())
    layout = {"version": (8, "<I"), "header": (12, "<I"), "count": (16, "<Q")}
    layout |= {"shard_bytes": (24, "<Q"), "entry": (40, "<I"), "sections": (44, "<I")}
    for name, value in changes.items():
        offset, kind = layout[name]
        struct.pack_into(kind, data, offset, value)
    header, count = struct.unpack_from("<IQ", data, 12)
    end = header + count * struct.unpack_from("<I", data, 40)[0]
    if end + 4 <= len(data):
        struct.pack_into("<I", data, end, google_crc32c.value(bytes(data[:end])))
    return bytes(data)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 0}, "version 0, which does not exist"),
        ({"version": 3}, "index version 3, this program reads up to 2"),
        ({"count": 11}, "11 entries of 24 bytes do not fit"),
        ({"count": 2**63}, "do not fit"),
        ({"count": 9}, "beyond the last entry"),
        ({"count": 9, "sections": 4}, "do not add up"),
        ({"header": 0}, "do not fit"),
        ({"entry": 20}, "do not fit"),
        ({"shard_bytes": 5}, "in a shard of 5"),
        ({"shard_bytes": 10**6}, "do not add up to the shard's 1000000 bytes"),
        ({"shard_bytes": 2**64 - 1}, "in a shard of"),
    ],
)
def test_index_that_contradicts_itself_is_refused(shard, changes, complaint):
    with pytest.raises(IndexFileError, match=complaint):
        parse_index(patched_index(shard, **changes))


def test_optional_sections_of_a_later_writer_are_skipped(shard):
    data = bytearray((shard.parent / f"{shard.name}.idx").read_bytes() + b"something new")
    struct.pack_into("<Q", data, 32, len(data))
    struct.pack_into("<I", data, 44, 1 | 2 | 4)
    end = 64 + 10 * ENTRY.itemsize
    struct.pack_into("<I", data, end, google_crc32c.value(bytes(data[:end])))
    assert np.array_equal(parse_index(bytes(data)).entries, read_index(shard).entries)


def version_1(shard: Path, sections: int = 0, extra: bytes = b"") -> bytes:
    """The index of a shard as the first release wrote it, framed by hand."""
    index = read_index(shard)
    body = b"".join(
        struct.pack("<QQI", int(e["offset"]), int(e["length"]), int(e["frames"]))
        for e in index.entries
    )
    size = 64 + len(body) + len(extra) + 4
    head = (b"IVJINDEX", 1, 64, len(index.entries), index.shard_bytes, size, 20, sections)
    data = struct.pack("<8sIIQQQII16x", *head) + body + extra
    return data + struct.pack("<I", google_crc32c.value(data))


@pytest.mark.parametrize(("sections", "extra"), [(0, b""), (1, b"a frame table")])
def test_version_1_is_still_read(shard, sections, extra):
    today = read_index(shard)
    data = version_1(shard, sections, extra)
    (shard.parent / f"{shard.name}.idx").write_bytes(data)
    old = read_index(shard)
    for name in ("offset", "length", "frames"):
        assert np.array_equal(old.entries[name], today.entries[name])
    assert (old.binding, old.table_offset, old.crc) == (None, 0, crc_of(data))
    assert old.shard_bytes == today.shard_bytes and today.binding is not None


def crc_of(data: bytes) -> int:
    return struct.unpack("<I", data[-4:])[0]


@pytest.mark.parametrize("damage", [b"\0", b"1234567"])
def test_version_1_with_more_than_it_says_is_refused(shard, damage):
    with pytest.raises(IndexFileError, match="beyond the last entry"):
        parse_index(version_1(shard, 0, damage))
    with pytest.raises(IndexFileError, match="its header says"):
        parse_index(version_1(shard) + damage)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda data: b"", "too short"),
        (lambda data: b"{}" * 50, "starts with"),
        (lambda data: data[:-1], "its header says"),
        (lambda data: data + b"\0", "its header says"),
        (lambda data: data[:80] + bytes([data[80] ^ 1]) + data[81:], "checksum is"),
    ],
)
def test_damaged_index_is_refused_with_advice(shard, damage, complaint):
    path = shard.parent / f"{shard.name}.idx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IndexFileError, match=complaint) as caught:
        read_index(shard)
    assert "ivj data reindex" in str(caught.value) and str(path) in str(caught.value)


def test_huge_length_with_a_valid_checksum_allocates_nothing(tmp_path):
    length = struct.pack("<Q", 2**60)
    path = tmp_path / "x.tfrecord"
    path.write_bytes(length + struct.pack("<I", masked_crc(length)) + b"data")
    with pytest.raises(CorruptRecordError, match="needs 1152921504606846992 bytes"):
        build_index(path)


@given(st.binary(max_size=300))
def test_fuzz_arbitrary_index_bytes(data):
    with pytest.raises(IndexFileError):
        parse_index(data)


@pytest.mark.parametrize("version", [1, 2])
@FUZZ
@given(changes=CHANGES, length=st.integers(0, 1000), keep_length=st.booleans())
def test_fuzz_index_with_a_valid_checksum(tmp_path, version, changes, length, keep_length):
    """The checksum is made right, so that the checks behind it are reached."""
    shard = small_shard(tmp_path)
    data = Path(f"{shard}.idx").read_bytes() if version == 2 else version_1(shard)
    data = changed(data[:-4], changes, len(data) - 4 if keep_length else length)
    data += struct.pack("<I", google_crc32c.value(data))
    try:
        index = parse_index(data)
    except IndexFileError:
        return
    assert isinstance(index, Index)
    ends = index.entries["offset"] + index.entries["length"]
    assert np.all(ends <= index.shard_bytes)
