"""TFRecord shards: writing them, and reading any record of many of them by its number.

The framing and the index file are described in :mod:`data_pipelines.record_index`, whose public
names are available here too. Nothing here knows what is inside a record.
"""

import contextlib
import hashlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.record_index import (
    CRC,
    ENTRY,
    INDEX_SUFFIX,
    LENGTH,
    OVERHEAD,
    UNKNOWN_FRAMES,
    CorruptRecordError,
    Index,
    IndexFileError,
    build_index,
    masked_crc,
    parse_header,
    parse_index,
    read_index,
    write_index,
)

__all__ = [
    "ENTRY",
    "INDEX_SUFFIX",
    "UNKNOWN_FRAMES",
    "CorruptRecordError",
    "Index",
    "IndexFileError",
    "RecordSource",
    "ShardWriter",
    "build_index",
    "masked_crc",
    "parse_index",
    "read_index",
    "write_index",
]


class ShardWriter:
    """Writes one shard and its index; a shard under its final name is always complete.

    Use as a context manager. Data goes to ``PATH.tmp``; a clean exit syncs it to disk, renames
    it and then writes the index. An exception inside the block removes the temporary file.

    Attributes:
      count: records appended so far.
      bytes: size of the shard so far.
      frames: sum of the frame counts given to :meth:`append`.
      sha256: hex digest of the shard so far.
      index_crc: checksum of the index file, after a clean exit.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self.count = self.bytes = self.frames = self.index_crc = 0
        self._digest = hashlib.sha256()
        self._entries: list[tuple[int, int, int]] = []
        self._tmp = self.path + ".tmp"
        self._file = open(self._tmp, "wb")  # noqa: SIM115 - closed by close() or abort()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def append(self, data: bytes, num_frames: int = UNKNOWN_FRAMES) -> None:
        """Add one record.

        Args:
          data: the record's bytes.
          num_frames: how many frames it holds, for the index.
        """
        length = struct.pack("<Q", len(data))
        header = length + CRC.pack(masked_crc(length))
        footer = CRC.pack(masked_crc(data))
        for part in (header, data, footer):
            self._file.write(part)
            self._digest.update(part)
        self._entries.append((self.bytes, len(data), num_frames))
        self.count += 1
        self.bytes += len(data) + OVERHEAD
        self.frames += num_frames if num_frames != UNKNOWN_FRAMES else 0

    def close(self) -> None:
        """Make the shard durable under its final name, then write its index."""
        self._file.flush()
        os.fsync(self._file.fileno())
        mine = os.fstat(self._file.fileno())
        self._file.close()
        there = os.stat(self._tmp)
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise RuntimeError(
                f"{self._tmp} was replaced by another process while it was being written; "
                "make sure only one ingest uses this directory, then run it again"
            )
        # An old index beside a new shard would be a lie if we stopped between the two renames.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path + INDEX_SUFFIX)
        os.replace(self._tmp, self.path)
        entries = np.array(self._entries, dtype=ENTRY)
        self.index_crc = write_index(self.path, entries, self.bytes)

    def abort(self) -> None:
        """Give up: close and remove the temporary file."""
        # Closing flushes, which fails again on the full disk that brought us here.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._tmp)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise


class _OpenFile:
    """A descriptor that closes itself when the last user drops it.

    Eviction from the cache can then never close a file another thread is reading.
    """

    __slots__ = ("fd",)

    def __init__(self, path: str):
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.fd)


class RecordSource(Sequence[bytes]):
    """Random access to the records of many shards, as one sequence.

    Safe to share between threads, to fork and to pickle; descriptors are opened lazily, at most
    ``max_open`` at a time, and never travel to another process.

    Args:
      shards: paths, in the order that defines the record numbers.
      indexes: one :class:`Index` per shard; by default the sidecar is read, and a shard without
        one is scanned.
      check_crc: verify the checksum of every record read (about 0.2 ms for 6 MB).
      max_open: bound on open files.

    Raises:
      FileNotFoundError: a shard does not exist.
      ValueError: no shards, or an index that belongs to another shard (IndexFileError).
      CorruptRecordError: a shard without an index cannot be scanned.
    """

    def __init__(
        self,
        shards: Sequence[str],
        *,
        indexes: Sequence[Index] | None = None,
        check_crc: bool = True,
        max_open: int = 64,
    ):
        if not shards:
            raise ValueError("no shards given; pass the paths of at least one .tfrecord file")
        self.shards = tuple(os.fspath(shard) for shard in shards)
        if indexes is None:
            indexes = [_sidecar_or_scan(shard) for shard in self.shards]
        if len(indexes) != len(self.shards):
            raise ValueError(f"{len(indexes)} indexes for {len(self.shards)} shards")
        for shard, index in zip(self.shards, indexes, strict=True):
            _check_size(shard, index)
        self.check_crc = check_crc
        self._max_open = max(1, max_open)
        self._entries = np.concatenate([index.entries for index in indexes])
        self._sizes = tuple(index.shard_bytes for index in indexes)
        # _starts[k] is the number of the first record of shard k; the last item is the total.
        self._starts = np.cumsum([0] + [len(index.entries) for index in indexes])
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_pid", "_lock", "_open"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[str, int, int]:
        """Where record ``index`` is: (shard path, record number in it, byte offset)."""
        shard, record = self._find(index)
        return (
            self.shards[shard],
            record,
            int(self._entries[self._starts[shard] + record]["offset"]),
        )

    def num_frames(self, index: int) -> int:
        """Frames of record ``index`` by the index, without reading it; -1 when unknown."""
        shard, record = self._find(index)
        frames = int(self._entries[self._starts[shard] + record]["frames"])
        return frames if frames != UNKNOWN_FRAMES else -1

    def _find(self, index: int) -> tuple[int, int]:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def __getitem__(self, index: Any) -> bytes:
        """The bytes of record ``index``.

        Raises:
          IndexError: outside 0 <= index < len(self).
          CorruptRecordError: the record is cut, damaged, or not where the index says.
        """
        shard, record = self._find(index)
        path = self.shards[shard]
        entry = self._entries[self._starts[shard] + record]
        offset, length = int(entry["offset"]), int(entry["length"])
        file = self._file(shard)
        header = _pread(file.fd, LENGTH.size, offset)
        found = parse_header(header, path, offset, record)
        if found != length:
            raise CorruptRecordError(
                path,
                record,
                offset,
                f"the shard has a record of {found} bytes here, the index says {length}",
                "The index belongs to another version of the shard: copy both again, or rebuild "
                f"it with python -m data_pipelines reindex {os.path.dirname(path) or '.'}",
            )
        data = _pread(file.fd, length, offset + LENGTH.size)
        footer = _pread(file.fd, CRC.size, offset + LENGTH.size + length)
        if len(data) + len(footer) != length + CRC.size:
            raise CorruptRecordError(
                path,
                record,
                offset,
                f"truncated: {len(data)} of {length} bytes are there",
            )
        if self.check_crc and CRC.unpack(footer)[0] != masked_crc(data):
            raise CorruptRecordError(
                path,
                record,
                offset,
                f"checksum of the {length} data bytes is {masked_crc(data):#010x}, "
                f"expected {CRC.unpack(footer)[0]:#010x}",
            )
        return data

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    def _file(self, shard: int) -> _OpenFile:
        if self._pid != os.getpid():
            # Forked: the parent's lock may be held by a thread that does not exist here.
            self._reset()
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = self._open[shard] = _OpenFile(self.shards[shard])
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return file

    def close(self) -> None:
        """Drop the open descriptors; reading again reopens them."""
        self._reset()

    def __repr__(self) -> str:
        # Checkpointing libraries compare this text to tell whether the data is the same.
        digest = hashlib.sha256()
        counts = np.diff(self._starts)
        for shard, count, size in zip(self.shards, counts, self._sizes, strict=True):
            digest.update(f"{os.path.basename(shard)} {count} {size}\n".encode(errors="replace"))
        return (
            f"RecordSource({len(self.shards)} shards, {len(self)} records, {sum(self._sizes)} "
            f"bytes, first {os.path.basename(self.shards[0])}, digest {digest.hexdigest()[:16]})"
        )


def _sidecar_or_scan(shard: str) -> Index:
    try:
        return read_index(shard)
    except FileNotFoundError:
        return build_index(shard)


def _check_size(shard: str, index: Index) -> None:
    try:
        size = os.stat(shard).st_size
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{shard}: the shard is missing; copy it again from its origin or repeat the ingest"
        ) from error
    if size != index.shard_bytes:
        raise IndexFileError(
            f"{shard}: the shard has {size} bytes, its index describes {index.shard_bytes}: one "
            "of them is truncated, older, or of another dataset. Copy both again, or rebuild the "
            f"index with python -m data_pipelines reindex {os.path.dirname(shard) or '.'}"
        )


def _pread(fd: int, size: int, offset: int) -> bytes:
    """Up to ``size`` bytes; a single call may return fewer, and at most 2 GiB."""
    data = os.pread(fd, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    got = len(data)
    while got < size:
        data = os.pread(fd, size - got, offset + got)
        if not data:
            break
        parts.append(data)
        got += len(data)
    return b"".join(parts)
