"""TFRecord framing and the offset index of a shard.

A shard is a plain TFRecord file, readable by TensorFlow, ``grain`` and everything else that
knows the format. Each record is framed as::

    u64 length | u32 masked crc32c(length bytes) | data | u32 masked crc32c(data)

Beside it lies ``SHARD.idx``, which makes the shard random access and confines damage to the
records it hits. All numbers are little endian::

    8s magic "IVJINDEX" | u32 version | u32 header size | u64 records | u64 shard size
    | u64 index size | u32 entry size | u32 optional sections | 16 zero bytes
    then per record   u64 offset of the framing | u64 length of the data | u32 frames
    then the optional sections (none are defined yet; a reader skips what it does not know)
    then u32 crc32c of everything before

A frame count of 2^32 - 1 means unknown. Nothing here knows what is inside a record.
"""

import contextlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

INDEX_SUFFIX = ".idx"
UNKNOWN_FRAMES = 2**32 - 1

ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("frames", "<u4")])

_MAGIC = b"IVJINDEX"
_INDEX_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQII16x")
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
      entries: structured array of dtype ``ENTRY``; ``offset`` is where the framing starts.
      shard_bytes: size of the shard the index describes.
      crc: checksum of the index file; 0 for an index that was scanned, not read.
    """

    entries: np.ndarray
    shard_bytes: int
    crc: int = 0


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file so that a crash leaves either the old or the new content."""
    tmp = f"{os.fspath(path)}.tmp"
    try:
        with open(tmp, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp)
        raise


def write_index(shard: str | os.PathLike[str], entries: np.ndarray, shard_bytes: int) -> int:
    """Write ``SHARD.idx`` atomically.

    Args:
      shard: path of the shard, not of the index.
      entries: (records,) array of dtype ``ENTRY``.
      shard_bytes: size of the shard.

    Returns:
      The checksum stored in the index, which the manifest repeats.
    """
    body = np.ascontiguousarray(entries, dtype=ENTRY).tobytes()
    size = _HEADER.size + len(body) + CRC.size
    content = (
        _HEADER.pack(
            _MAGIC,
            _INDEX_VERSION,
            _HEADER.size,
            len(entries),
            shard_bytes,
            size,
            ENTRY.itemsize,
            0,
        )
        + body
    )
    crc = google_crc32c.value(content)
    write_atomic(os.fspath(shard) + INDEX_SUFFIX, content + CRC.pack(crc))
    return crc


def read_index(shard: str | os.PathLike[str]) -> Index:
    """Read and check ``SHARD.idx``.

    Raises:
      FileNotFoundError: there is no index.
      IndexFileError: it is damaged, newer than this program, or contradicts itself.
    """
    path = os.fspath(shard) + INDEX_SUFFIX
    return parse_index(Path(path).read_bytes(), path)


def parse_index(data: bytes, path: str = "index") -> Index:
    """Parse the bytes of an index file; ``path`` is only for messages. Raises IndexFileError."""

    def broken(problem: str) -> IndexFileError:
        return IndexFileError(
            f"{path}: {problem}. Rebuild it: python -m data_pipelines reindex "
            f"{os.path.dirname(path) or '.'}"
        )

    if len(data) < _HEADER.size + CRC.size:
        raise broken(f"{len(data)} bytes, too short for an index")
    magic, version, header, count, shard_bytes, size, entry, sections = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise broken(f"starts with {magic!r}, expected {_MAGIC!r}")
    if version > _INDEX_VERSION:
        raise IndexFileError(
            f"{path}: index version {version}, this program reads up to {_INDEX_VERSION}; "
            "update the program"
        )
    if size != len(data):
        raise broken(f"is {len(data)} bytes long, its header says {size}")
    (crc,) = CRC.unpack_from(data, len(data) - CRC.size)
    found = google_crc32c.value(data[: -CRC.size])
    if crc != found:
        raise broken(f"checksum is {found:#010x}, expected {crc:#010x}")
    # Written by something that knows how to compute the checksum, so the rest is about meaning;
    # Python integers cannot overflow, so absurd counts fail here and allocate nothing.
    end = header + count * entry
    if entry != ENTRY.itemsize or header < _HEADER.size or end + CRC.size > size:
        raise broken(f"{count} entries of {entry} bytes do not fit {size} bytes")
    if sections == 0 and end + CRC.size != size:
        raise broken(f"{size - end - CRC.size} bytes beyond the last entry")
    entries = np.frombuffer(data, dtype=ENTRY, count=count, offset=header)
    _check_entries(entries, shard_bytes, broken)
    return Index(entries, shard_bytes, crc)


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
    offsets: list[tuple[int, int, int]] = []
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            length = parse_header(
                os.pread(file.fileno(), LENGTH.size, offset), path, offset, len(offsets)
            )
            end = offset + length + OVERHEAD
            if end > size:
                raise CorruptRecordError(
                    path,
                    len(offsets),
                    offset,
                    f"truncated: the record needs {length + OVERHEAD} bytes, "
                    f"{size - offset} are left",
                )
            offsets.append((offset, length, UNKNOWN_FRAMES))
            offset = end
    return Index(np.array(offsets, dtype=ENTRY), size)


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
