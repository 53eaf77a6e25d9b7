"""TFRecord framing and the offset index of a shard.

A shard is a plain TFRecord file, readable by TensorFlow, `grain` and everything else that
knows the format. Each record is framed as::

    u64 length | u32 masked crc32c(length bytes) | data | u32 masked crc32c(data)

Beside it lies `SHARD.idx`, which makes the shard random access and confines damage to the
records it hits. All numbers are little endian::

    8s magic "IVJINDEX" | u32 version | u32 header size | u64 records | u64 shard size
    | u64 index size | u32 entry size | u32 sections | 2 x u32 binding | 8 zero bytes
    then per record   u64 offset of the framing | u64 length of the data | u32 frames
                      | u32 size of the record's block in the frame table
    then u32 crc32c of everything before
    then, with section 1, the blocks of the frame table (data_pipelines.records.frame_table)

Opening reads up to the checksum; a block of the frame table carries its own checksum and is read
with its record. A frame count of 2^32 - 1 means unknown. With section 2 the binding is the checksum
fields of the first and the last record of the shard, which tell shards of equal size apart. Further
sections may follow; a reader skips what it does not know.

Version 1 has no binding, no block sizes and no frame table, and its checksum is the last field of
the file, behind the sections.
"""

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import google_crc32c
import numpy as np

from data_pipelines.records import storage
from data_pipelines.records.storage import write_atomic

__all__ = [
    "CRC",
    "ENTRY",
    "INDEX_SUFFIX",
    "LENGTH",
    "OVERHEAD",
    "UNKNOWN_FRAMES",
    "CorruptRecordError",
    "Index",
    "IndexFileError",
    "build_index",
    "masked_crc",
    "parse_header",
    "parse_index",
    "read_index",
    "write_atomic",
    "write_index",
]

INDEX_SUFFIX = ".idx"
UNKNOWN_FRAMES = 2**32 - 1

ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("frames", "<u4"), ("block", "<u4")])

_ENTRY_1 = np.dtype([("offset", "<u8"), ("length", "<u8"), ("frames", "<u4")])
_MAGIC = b"IVJINDEX"
_INDEX_VERSION = 2
_HEADER = struct.Struct("<8sIIQQQIIII8x")
_FRAME_TABLE, _BINDING = 1, 2
CRC = struct.Struct("<I")
LENGTH = struct.Struct("<QI")
OVERHEAD = LENGTH.size + CRC.size


class CorruptRecordError(ValueError):
    """A shard that does not hold what it should; the message names shard, record and offset.

    Attributes:
      shard, record, offset, problem: the parts of the message.
    """

    def __init__(self, shard: str, record: int, offset: int, problem: str, advice: str = ""):
        # All arguments go to the base class, so that the error survives pickling.
        super().__init__(shard, record, offset, problem, advice)
        self.shard, self.record, self.offset, self.problem = shard, record, offset, problem
        self._advice = advice or (
            "Copy the shard again from its origin, or delete it and repeat the ingest"
        )

    def __str__(self) -> str:
        return (
            f"{self.shard}: record {self.record} at byte {self.offset}: {self.problem}. "
            f"{self._advice}."
        )


class IndexFileError(ValueError):
    """An index file that is damaged, of a newer version, or of another shard."""


def masked_crc(data: bytes) -> int:
    """The checksum TFRecord stores: crc32c, rotated so that a crc of crcs stays useful."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Index:
    """Where the records of one shard are.

    Attributes:
      entries: structured array of dtype `ENTRY`; `offset` is where the framing starts.
      shard_bytes: size of the shard the index describes.
      crc: checksum of the index file; 0 for an index that was scanned, not read.
      binding: checksum fields of the first and the last record of the shard, which tie the index
        to it; None when unknown (version 1, or no records).
      table_offset: where the frame table starts in the index file; 0 without one.
    """

    entries: np.ndarray
    shard_bytes: int
    crc: int = 0
    binding: tuple[int, int] | None = None
    table_offset: int = 0


def write_index(
    shard: str | os.PathLike[str],
    entries: np.ndarray,
    shard_bytes: int,
    *,
    blocks: Iterable[bytes] = (),
    binding: tuple[int, int] | None = None,
) -> int:
    """Write `SHARD.idx` atomically.

    Args:
      shard: path of the shard, not of the index.
      entries: (records,) array of dtype `ENTRY`; the sizes of the blocks are filled in here.
      shard_bytes: size of the shard.
      blocks: one block of the frame table per record, empty where there is none; none at all for
        an index without a frame table.
      binding: checksum fields of the first and the last record.

    Returns:
      The checksum stored in the index, which the manifest repeats.
    """
    blocks = list(blocks)
    entries = np.array(entries, dtype=ENTRY)
    entries["block"] = [len(block) for block in blocks] if blocks else 0
    body = entries.tobytes()
    opening = _HEADER.size + len(body) + CRC.size
    table = b"".join(blocks)
    content = (
        _HEADER.pack(
            _MAGIC,
            _INDEX_VERSION,
            _HEADER.size,
            len(entries),
            shard_bytes,
            opening + len(table),
            ENTRY.itemsize,
            (_FRAME_TABLE if blocks else 0) | (0 if binding is None else _BINDING),
            *(binding or (0, 0)),
        )
        + body
    )
    crc = google_crc32c.value(content)
    write_atomic(os.fspath(shard) + INDEX_SUFFIX, content + CRC.pack(crc) + table)
    return crc


def read_index(
    shard: str | os.PathLike[str], *, records: int | None = None, size: int | None = None
) -> Index:
    """Read and check `SHARD.idx`, without its frame table.

    Args:
      shard: path of the shard, local or remote.
      records, size: records of the shard and size of the index file where they are known; each
        saves a request on remote storage.

    Raises:
      FileNotFoundError: there is no index.
      IndexFileError: it is damaged, newer than this program, or contradicts itself.
    """
    path = os.fspath(shard) + INDEX_SUFFIX
    file = storage.open_ranges(path, size)
    try:
        size = file.size
        if records is None:
            header = file.pread(_HEADER.size, 0)
            if len(header) == _HEADER.size:
                records = _HEADER.unpack(header)[3]
        guess = _HEADER.size + (records or 0) * ENTRY.itemsize + CRC.size
        data = file.pread(min(size, guess), 0)
        opening = _opening_size(data, size)
        if opening > len(data):
            data += file.pread(opening - len(data), len(data))
        return parse_index(data, path, size)
    finally:
        file.close()


def _opening_size(data: bytes, file_size: int) -> int:
    """Bytes that opening an index needs, at most the whole file."""
    if len(data) < _HEADER.size:
        return file_size
    _, version, header, count, _, _, entry, *_ = _HEADER.unpack_from(data)
    return file_size if version < 2 else min(file_size, header + count * entry + CRC.size)


def parse_index(data: bytes, path: str = "index", file_size: int | None = None) -> Index:
    """Parse an index file.

    Args:
      data: its bytes, at least up to the checksum.
      path: only for messages.
      file_size: of the file, when `data` is not all of it.

    Raises:
      IndexFileError: it is damaged, newer than this program, or contradicts itself.
    """

    def broken(problem: str) -> IndexFileError:
        return IndexFileError(
            f"{path}: {problem}. Rebuild it: ivj data reindex {os.path.dirname(path) or '.'}"
        )

    file_size = len(data) if file_size is None else file_size
    if len(data) < _HEADER.size + CRC.size:
        raise broken(f"{len(data)} bytes, too short for an index")
    magic, version, header, count, shard_bytes, size, entry, sections, *binding = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC:
        raise broken(f"starts with {magic!r}, expected {_MAGIC!r}")
    if version > _INDEX_VERSION:
        raise IndexFileError(
            f"{path}: index version {version}, this program reads up to {_INDEX_VERSION}; "
            "update the program"
        )
    if version < 1:
        raise broken("index version 0, which does not exist")
    if size != file_size:
        raise broken(f"is {file_size} bytes long, its header says {size}")
    # Python integers cannot overflow, so absurd counts fail here and allocate nothing.
    end = header + count * entry
    kind = ENTRY if version > 1 else _ENTRY_1
    fits = entry == kind.itemsize and header >= _HEADER.size and end + CRC.size <= size
    crc_at = end if version > 1 and fits else len(data) - CRC.size
    if crc_at + CRC.size > len(data):
        raise broken(f"{len(data)} bytes could be read, its {count} entries need more")
    (crc,) = CRC.unpack_from(data, crc_at)
    found = google_crc32c.value(data[:crc_at])
    # With a size that fits nothing the place of the checksum is unknown.
    if fits and crc != found:
        raise broken(f"checksum is {found:#010x}, expected {crc:#010x}")
    # Written by something that knows how to compute the checksum, so the rest is about meaning.
    if not fits:
        raise broken(f"{count} entries of {entry} bytes do not fit {size} bytes")
    entries = np.frombuffer(data, dtype=kind, count=count, offset=header)
    if version == 1:
        entries = _upgraded(entries)
    table = int(entries["block"].sum(dtype=np.uint64))
    known = end + CRC.size + table
    unknown = sections & ~(_FRAME_TABLE | _BINDING) if version > 1 else sections
    if known > size or (not unknown and known != size):
        raise broken(f"{size - end - CRC.size} bytes beyond the last entry, expected {table}")
    _check_entries(entries, shard_bytes, broken)
    return Index(
        entries,
        shard_bytes,
        crc,
        (binding[0], binding[1]) if version > 1 and sections & _BINDING else None,
        end + CRC.size if table else 0,
    )


def _upgraded(entries: np.ndarray) -> np.ndarray:
    """Entries of version 1 as those of today, without blocks."""
    result = np.zeros(len(entries), ENTRY)
    for name in _ENTRY_1.names or ():
        result[name] = entries[name]
    return result


def _check_entries(
    entries: np.ndarray, shard_bytes: int, broken: Callable[[str], IndexFileError]
) -> None:
    """The records must tile the shard exactly: anything else belongs to another file."""
    lengths = entries["length"]
    if len(entries) == 0:
        if shard_bytes:
            raise broken(f"no records for a shard of {shard_bytes} bytes")
        return
    # Bounding each length first keeps the unsigned sums below from wrapping around.
    if int(lengths.max()) > shard_bytes or shard_bytes > 2**62 // len(entries):
        raise broken(f"a record of {int(lengths.max())} bytes in a shard of {shard_bytes}")
    ends = np.cumsum(lengths + np.uint64(OVERHEAD))
    starts = np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
    if not np.array_equal(starts, entries["offset"]) or int(ends[-1]) != shard_bytes:
        raise broken(f"its records do not add up to the shard's {shard_bytes} bytes")


def build_index(shard: str | os.PathLike[str]) -> Index:
    """Scan the record headers of a shard; frame counts stay unknown, data is not read.

    Raises:
      CorruptRecordError: a length checksum fails or the last record is cut.
    """
    path = os.fspath(shard)
    found: list[tuple[int, int, int, int]] = []
    file = storage.open_ranges(path)
    try:
        size = file.size
        offset = 0
        while offset < size:
            length = parse_header(file.pread(LENGTH.size, offset), path, offset, len(found))
            end = offset + length + OVERHEAD
            if end > size:
                raise CorruptRecordError(
                    path,
                    len(found),
                    offset,
                    f"truncated: the record needs {length + OVERHEAD} bytes, "
                    f"{size - offset} are left",
                )
            found.append((offset, length, UNKNOWN_FRAMES, 0))
            offset = end
    finally:
        file.close()
    return Index(np.array(found, dtype=ENTRY), size)


def parse_header(header: bytes, shard: str, offset: int, record: int) -> int:
    """The data length from the 12 framing bytes before a record.

    Raises:
      CorruptRecordError: fewer than 12 bytes, or their checksum fails.
    """
    if len(header) != LENGTH.size:
        raise CorruptRecordError(
            shard, record, offset, f"truncated: {len(header)} bytes are left, a header needs 12"
        )
    length, crc = LENGTH.unpack(header)
    found = masked_crc(header[:8])
    if crc != found:
        raise CorruptRecordError(
            shard,
            record,
            offset,
            f"checksum of the length is {found:#010x}, expected {crc:#010x} "
            "(damaged, compressed, or not a TFRecord file)",
        )
    return length
