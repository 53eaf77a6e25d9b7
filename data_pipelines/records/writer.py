"""Writing one TFRecord shard and its index."""

import contextlib
import hashlib
import os
import struct
import tempfile
from typing import Any

import numpy as np

from data_pipelines.records import frame_table, storage
from data_pipelines.records.index import (
    CRC,
    ENTRY,
    INDEX_SUFFIX,
    OVERHEAD,
    UNKNOWN_FRAMES,
    masked_crc,
    write_index,
)


class ShardWriter:
    """Writes one shard and its index; a shard under its final name is always complete.

    Use as a context manager. Data goes to `PATH.tmp`, for a remote path to a file in the
    temporary directory; a clean exit syncs it to disk, renames or uploads it and then writes the
    index. An exception inside the block removes the temporary file.

    Attributes:
      count: records appended so far.
      bytes: size of the shard so far.
      frames: sum of the frame counts given to `append`.
      sha256: hex digest of the shard so far.
      index_crc: checksum of the index file, after a clean exit.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self.count = self.bytes = self.frames = self.index_crc = 0
        self._digest = hashlib.sha256()
        self._entries: list[tuple[int, int, int, int]] = []
        self._blocks: list[bytes] = []
        self._binding: tuple[int, int] | None = None
        if storage.is_remote(self.path):
            fd, self._tmp = tempfile.mkstemp(prefix="shard-", suffix=".tmp")
            self._file = os.fdopen(fd, "wb")
        else:
            self._tmp = self.path + ".tmp"
            self._file = storage.create(self._tmp)

    @property
    def sha256(self) -> str:
        """Of what was written until now."""
        return self._digest.hexdigest()

    def append(self, data: bytes, num_frames: int = UNKNOWN_FRAMES) -> None:
        """Add one record.

        Args:
          data: the record's bytes.
          num_frames: how many frames it holds, for the index.
        """
        length = struct.pack("<Q", len(data))
        header = length + CRC.pack(masked_crc(length))
        data_crc = masked_crc(data)
        footer = CRC.pack(data_crc)
        for part in (header, data, footer):
            self._file.write(part)
            self._digest.update(part)
        self._entries.append((self.bytes, len(data), num_frames, 0))
        self._blocks.append(frame_table.pack(data, data_crc)[0])
        self._binding = (self._binding[0] if self._binding else data_crc, data_crc)
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
        storage.remove(self.path + INDEX_SUFFIX)
        storage.publish(self._tmp, self.path)
        self.index_crc = write_index(
            self.path,
            np.array(self._entries, dtype=ENTRY),
            self.bytes,
            blocks=self._blocks,
            binding=self._binding,
        )

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
