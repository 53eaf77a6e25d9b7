"""A digest of the pixels that a model was shown: two results saw the same if theirs are equal.

It is of the uint8 clips as they come from decoding, cropping and resizing, before normalisation.
Every clip counts by its content alone: the digest is the sum over the clips of the first half of
their SHA-256, so neither the order of clips nor batches, padding, devices or processes matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from internvideo_jax.parallel.multihost import to_host

BITS = 128
_WORD = 32  # bits in which processes exchange their sums
_MODULUS = 1 << BITS


def clip_digest(clip: np.ndarray) -> int:
    """Of one clip (T, H, W, 3): of its shape, type and bytes, which are read where they lie."""
    found = hashlib.sha256(f"{clip.dtype} {clip.shape}\n".encode())
    found.update(np.ascontiguousarray(clip).data)
    return int.from_bytes(found.digest()[: BITS // 8], "big")


class PixelDigest:
    """The pixels of a pass, or of several.

    Attributes:
      clips: that were counted.
      records: number of a record -> the sum of its clips, of the rows of this process.
    """

    def __init__(self) -> None:
        self.clips, self._sum = 0, 0
        self.records: dict[int, int] = {}

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> PixelDigest:
        """What `content` told of; `records` are not in it.

        Raises:
          AttributeError, KeyError, TypeError, ValueError: it is nothing that `content` gives.
        """
        found = cls()
        if content:
            found.clips, found._sum = int(content["clips"]), int(content["digest"], 16)
        return found

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts the `valid` rows of a batch with `video` and `index`; others have no pixels."""
        if "video" not in batch:
            return
        for row in np.flatnonzero(batch["valid"]):
            self.add_clip(batch["video"][row], int(batch["index"][row]))

    def add_clip(self, clip: np.ndarray, record: int) -> None:
        """Counts one clip (T, H, W, 3) of a record."""
        value = clip_digest(clip)
        self.clips += 1
        self._sum = (self._sum + value) % _MODULUS
        self.records[record] = (self.records.get(record, 0) + value) % _MODULUS

    def join(self, first: bool = True) -> None:
        """Adds what other processes saw; collective. `records` stays that of this process.

        Args:
          first: False where another process saw the same and counts it.
        """
        words = [(self._sum >> (_WORD * n)) % (1 << _WORD) for n in range(BITS // _WORD)]
        rows = to_host(np.array([[self.clips, *words]], np.uint32) * np.uint32(first))
        self.clips = int(rows[:, 0].sum(dtype=np.int64))
        sums = (sum(int(word) << (_WORD * n) for n, word in enumerate(row[1:])) for row in rows)
        self._sum = sum(sums) % _MODULUS

    def merge(self, other: PixelDigest) -> None:
        """Counts what another one has, too."""
        self.clips += other.clips
        self._sum = (self._sum + other._sum) % _MODULUS
        for record, value in other.records.items():
            self.records[record] = (self.records.get(record, 0) + value) % _MODULUS

    def of_record(self, record: int) -> str:
        """In hex, of the clips of one record; empty: it was not seen here."""
        return f"{self.records[record]:032x}" if record in self.records else ""

    @property
    def hex(self) -> str:
        """In hex; empty: no pixels were seen."""
        return f"{self._sum:032x}" if self.clips else ""

    def content(self) -> dict[str, Any]:
        """As results store it: `digest` and `clips`; {} where no pixels were seen."""
        return {"digest": self.hex, "clips": self.clips} if self.clips else {}
