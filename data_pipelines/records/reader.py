"""TFRecord shards: reading any record of many of them by its number.

The framing and the index file are described in `records.index`, the writer is in
`records.writer`; their public names are available here too. All that is known
here of what is inside a record is where its parts lie (`records.frame_table`), so that
they can be read without the rest.
"""

import hashlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np

from data_pipelines.records import frame_table, storage
from data_pipelines.records.frame_table import FrameTable
from data_pipelines.records.index import (
    CRC,
    ENTRY,
    INDEX_SUFFIX,
    LENGTH,
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
from data_pipelines.records.writer import ShardWriter

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

# Bytes between two wanted parts up to which one read of everything is cheaper than two. Locally a
# read costs about as much as copying a few pages. On remote storage a request is worth more bytes,
# but its latency is hidden by other clips being read and the bytes of the network are not.
LOCAL_GAP = 4096
REMOTE_GAP = 48 * 1024

_PAIR = struct.Struct("<II")


class RecordSource(Sequence[bytes]):
    """Random access to the records of many shards, as one sequence.

    Safe to share between threads, to fork and to pickle; descriptors are opened lazily, at most
    `max_open` at a time, and never travel to another process.

    Attributes:
      bytes_read: bytes moved since the source was made, opened in this process, or unpickled;
        those of the frame tables included.
      requests: reads those bytes took.

    Args:
      shards: paths or URLs, in the order that defines the record numbers.
      indexes: one `Index` per shard; by default the sidecar is read, and a shard without
        one is scanned.
      check_crc: verify the checksum of everything read (about 0.2 ms for 6 MB).
      max_open: bound on open files.
      merge_gap: parts of a record at most this many bytes apart are read together; by default
        `LOCAL_GAP` or `REMOTE_GAP`.
      check_sizes: compare the size of every shard with its index now; False where the caller has.

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
        merge_gap: int | None = None,
        check_sizes: bool = True,
    ):
        if not shards:
            raise ValueError("no shards given; pass the paths of at least one .tfrecord file")
        self.shards = tuple(os.fspath(shard) for shard in shards)
        if indexes is None:
            indexes = [_sidecar_or_scan(shard) for shard in self.shards]
        if len(indexes) != len(self.shards):
            raise ValueError(f"{len(indexes)} indexes for {len(self.shards)} shards")
        if check_sizes:
            for shard, index in zip(self.shards, indexes, strict=True):
                _check_size(shard, index)
        self.check_crc = check_crc
        self._max_open = max(1, max_open)
        self._merge_gap = merge_gap
        self._bindings = tuple(index.binding for index in indexes)
        self._tables = tuple(index.table_offset for index in indexes)
        self._entries = np.concatenate([index.entries for index in indexes])
        self._sizes = tuple(index.shard_bytes for index in indexes)
        # _starts[k] is the number of the first record of shard k; the last item is the total.
        self._starts = np.cumsum([0] + [len(index.entries) for index in indexes])
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[int, str], storage.Ranges] = OrderedDict()
        self._bound: set[int] = set()
        self.bytes_read = self.requests = 0

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_pid", "_lock", "_open", "_bound", "bytes_read", "requests"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[str, int, int]:
        """Where record `index` is: (shard path, record number in it, byte offset)."""
        shard, record = self._find(index)
        return (
            self.shards[shard],
            record,
            int(self._entries[self._starts[shard] + record]["offset"]),
        )

    def num_frames(self, index: int) -> int:
        """Frames of record `index` by the index, without reading it; -1 when unknown."""
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
        """The bytes of record `index`.

        Raises:
          IndexError: outside 0 <= index < len(self).
          CorruptRecordError: the record is cut, damaged, or not where the index says.
          StorageError: remote storage kept failing.
        """
        shard, record = self._find(index)
        path = self.shards[shard]
        entry = self._entries[self._starts[shard] + record]
        offset, length = int(entry["offset"]), int(entry["length"])
        file = self._file(shard)
        spans = [
            (LENGTH.size, offset),
            (length, offset + LENGTH.size),
            (CRC.size, offset + LENGTH.size + length),
        ]
        # Remote: one request. Local: three reads cost less than cutting 6 MB out of one.
        header, data, footer = self._read(file, spans, 0 if file.remote else -1)
        found = parse_header(header, path, offset, record)
        if found != length:
            raise CorruptRecordError(
                path,
                record,
                offset,
                f"the shard has a record of {found} bytes here, the index says {length}",
                _OTHER_VERSION,
            )
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

    def table(self, index: int) -> FrameTable | None:
        """Where the parts of record `index` lie; None when the index does not say.

        Raises:
          IndexError: outside 0 <= index < len(self).
          CorruptRecordError: this part of the index file is damaged.
          StorageError: remote storage kept failing.
        """
        shard, record = self._find(index)
        first = int(self._starts[shard])
        entry = self._entries[first + record]
        size, offset = int(entry["block"]), self._tables[shard]
        if not size or not offset:
            return None
        offset += int(self._entries["block"][first : first + record].sum(dtype=np.uint64))
        (block,) = self._read(self._file(shard, INDEX_SUFFIX), [(size, offset)], 0)
        try:
            return frame_table.unpack(block, int(entry["length"]))
        except frame_table.FrameTableError as error:
            raise CorruptRecordError(
                self.shards[shard] + INDEX_SUFFIX,
                record,
                offset,
                str(error),
                "Copy shard and index again, or rebuild the index with ivj data reindex",
            ) from error

    def parts(self, index: int, parts: Sequence[np.ndarray]) -> list[bytes]:
        """Bytes of some parts of record `index`, as `table` describes them.

        Parts that lie close together are read together; each is checked by its own checksum.

        Raises:
          CorruptRecordError: a part is cut or damaged.
          StorageError: remote storage kept failing.
        """
        shard, record = self._find(index)
        offset = int(self._entries[self._starts[shard] + record]["offset"])
        start = offset + LENGTH.size
        spans = [(int(part["length"]), start + int(part["offset"])) for part in parts]
        file = self._file(shard)
        gap = self._merge_gap
        if gap is None:
            gap = REMOTE_GAP if file.remote else LOCAL_GAP
        found = self._read(file, spans, gap)
        for part, data, (size, at) in zip(parts, found, spans, strict=True):
            if len(data) != size:
                problem = f"truncated: {len(data)} of {size} bytes are there"
            elif self.check_crc and google_crc32c.value(data) != int(part["crc"]):
                problem = (
                    f"checksum of {size} bytes at byte {at} is "
                    f"{google_crc32c.value(data):#010x}, the index says {int(part['crc']):#010x}"
                )
            else:
                continue
            raise CorruptRecordError(self.shards[shard], record, offset, problem)
        return found

    def check_table(self, index: int, data: bytes) -> None:
        """Compare the frame table of record `index` with the record itself.

        Args:
          index: which record.
          data: its bytes.

        Raises:
          CorruptRecordError: the index file describes something else.
        """
        shard, record = self._find(index)
        first = int(self._starts[shard])
        size = int(self._entries[first + record]["block"])
        if not size:
            return
        at = self._tables[shard] + int(
            self._entries["block"][first : first + record].sum(dtype=np.uint64)
        )
        (block,) = self._read(self._file(shard, INDEX_SUFFIX), [(size, at)], 0)
        if block != frame_table.pack(data, masked_crc(data))[0]:
            raise CorruptRecordError(
                self.shards[shard] + INDEX_SUFFIX,
                record,
                at,
                "the frame table does not describe the record",
                "Rebuild the index with ivj data reindex",
            )

    def _read(
        self, file: storage.Ranges, spans: Sequence[tuple[int, int]], gap: int
    ) -> list[bytes]:
        """The bytes of (size, offset) spans; those at most `gap` bytes apart in one read."""
        order = sorted(range(len(spans)), key=lambda i: spans[i][1])
        runs: list[list[int]] = []  # [first byte, byte behind the last, members...]
        for i in order:
            size, offset = spans[i]
            if runs and gap >= 0 and offset - runs[-1][1] <= gap:
                runs[-1][1] = max(runs[-1][1], offset + size)
                runs[-1].append(i)
            else:
                runs.append([offset, offset + size, i])
        found = file.pread_many([(end - start, start) for start, end, *_ in runs])
        with self._lock:
            self.requests += len(runs)
            self.bytes_read += sum(map(len, found))
        result = [b""] * len(spans)
        for (start, _, *members), data in zip(runs, found, strict=True):
            if len(members) == 1:
                result[members[0]] = data
                continue
            for i in members:
                size, offset = spans[i]
                result[i] = data[offset - start : offset - start + size]
        return result

    def _file(self, shard: int, suffix: str = "") -> storage.Ranges:
        """A shard or, with its suffix, its index, opened."""
        if self._pid != os.getpid():
            # Forked: the parent's lock may be held by a thread that does not exist here.
            self._reset()
        with self._lock:
            file = self._open.get((shard, suffix))
            if file is None:
                known, path = None if suffix else self._sizes[shard], self.shards[shard] + suffix
                try:
                    file = storage.open_ranges(path, known)
                except FileNotFoundError as error:
                    raise FileNotFoundError(
                        f"{path}: was there when the dataset was opened and is gone now; put it "
                        "back and start again"
                    ) from error
                self._open[shard, suffix] = file
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end((shard, suffix))
        if not suffix and shard not in self._bound:
            self._check_binding(shard, file)
        return file

    def _check_binding(self, shard: int, file: storage.Ranges) -> None:
        """That the index is of this shard: sizes and counts of two shards are often equal."""
        expected = self._bindings[shard]
        if expected is not None and self._starts[shard] < self._starts[shard + 1]:
            ends = self._entries[[self._starts[shard], self._starts[shard + 1] - 1]]
            spans = [
                (CRC.size, int(offset + length) + LENGTH.size)
                for offset, length in zip(ends["offset"], ends["length"], strict=True)
            ]
            found = b"".join(self._read(file, spans, 0))
            # One of two may be damage, which that record's own checksum confines to it.
            if not any(map(int.__eq__, expected, _PAIR.unpack(found.ljust(_PAIR.size, b"\0")))):
                raise CorruptRecordError(
                    self.shards[shard],
                    0,
                    0,
                    "the checksums of its first and last record are not those in the index: "
                    "swapped with another shard, or of another version",
                    _OTHER_VERSION,
                )
        self._bound.add(shard)

    def close(self) -> None:
        """Drop the open descriptors; reading again reopens them."""
        counts = self.bytes_read, self.requests
        self._reset()
        self.bytes_read, self.requests = counts

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


_OTHER_VERSION = (
    "The index belongs to another version of the shard: copy both again, or rebuild "
    "it with ivj data reindex"
)


def _sidecar_or_scan(shard: str) -> Index:
    try:
        return read_index(shard)
    except FileNotFoundError:
        return build_index(shard)


def _check_size(shard: str, index: Index) -> None:
    try:
        size = storage.size(shard)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{shard}: the shard is missing; copy it again from its origin or repeat the ingest"
        ) from error
    if size != index.shard_bytes:
        raise IndexFileError(
            f"{shard}: the shard has {size} bytes, its index describes {index.shard_bytes}: one "
            "of them is truncated, older, or of another dataset. Copy both again, or rebuild the "
            f"index with ivj data reindex {os.path.dirname(shard) or '.'}"
        )
