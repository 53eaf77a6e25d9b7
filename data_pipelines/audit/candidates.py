"""Which clips may be the same: those with a picture whose hashes agree in half of their bits.

A hash of 64 bits is cut into four parts; the six pairs of parts are its keys. Two hashes that
differ in two bits always share a key, in three bits in five of eight cases, in four in a third; a
copy has many pictures, of which one is enough. Keys are dealt to files by their value, and one file
at a time is sorted in memory: memory does not grow with the sets, and no pair of clips is looked at
that shares nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.audit.collect import SplitPrints
from data_pipelines.audit.fingerprints import hashes

_PARTS = 4
_BITS = 16
_PAIRS = tuple(itertools.combinations(range(_PARTS), 2))
_MASK = np.uint64((1 << _BITS) - 1)
_ENTRY = np.dtype([("key", "<u8"), ("clip", "<i8")])  # clip * 2 + whether mirrored
_FILE_BYTES = 64 << 20  # about; a file is sorted in memory
_MOST_FILES = 500
# Clips of one side in one bucket, such as of a camera that never moves: beyond, only the first ones
# are compared, and the rest is counted.
CROWD = 256


def keys(found: np.ndarray) -> np.ndarray:
    """(T,) uint64 hashes -> (T * 6,) uint64 keys."""
    parts = [(found >> np.uint64(_BITS * part)) & _MASK for part in range(_PARTS)]
    each = [
        (np.uint64(number) << np.uint64(2 * _BITS)) | (parts[a] << np.uint64(_BITS)) | parts[b]
        for number, (a, b) in enumerate(_PAIRS)
    ]
    return np.concatenate(each)


class Buckets:
    """Keys of clips, on disk.

    Attributes:
      crowded: clips that were left out of a bucket for its size.
    """

    def __init__(self, folder: str, pictures: int):
        os.makedirs(folder, exist_ok=True)
        size = 2 * len(_PAIRS) * pictures * _ENTRY.itemsize
        self._count = min(max(1, size // _FILE_BYTES), _MOST_FILES)
        self._paths = [os.path.join(folder, f"keys-{i:03d}") for i in range(self._count)]
        for path in self._paths:
            open(path, "wb").close()
        self.crowded = 0

    def add(self, prints: SplitPrints, first: int, *, mirrored: bool) -> None:
        """The clips of a split, numbered from `first`; with their mirror images if asked."""
        for shard, begins in zip(prints.shards, prints.first, strict=False):
            owner = np.repeat(np.arange(len(shard.ids)), np.diff(shard.begin)) + first + begins
            self._write(shard.hashes, owner * 2)
            if mirrored and len(owner):
                flipped = np.ascontiguousarray(shard.pictures()[:, :, ::-1])
                self._write(hashes(flipped), owner * 2 + 1)

    def _write(self, found: np.ndarray, clip: np.ndarray) -> None:
        entries = np.empty(len(found) * len(_PAIRS), _ENTRY)
        entries["key"], entries["clip"] = keys(found), np.tile(clip, len(_PAIRS))
        entries = np.unique(entries)  # a still clip has one picture many times
        place = (entries["key"] * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % np.uint64(
            self._count
        )
        order = np.argsort(place, kind="stable")
        ends = np.searchsorted(place[order], np.arange(self._count + 1))
        for path, begin, end in zip(self._paths, ends[:-1], ends[1:], strict=True):
            if begin < end:
                with open(path, "ab") as file:
                    file.write(entries[order[begin:end]].tobytes())

    def pairs(self, side: np.ndarray, wanted: Sequence[tuple[int, int]]) -> np.ndarray:
        """(N, 3) int64, each pair once: a clip, another, whether that is mirrored.

        Args:
          side: (C,) which split a clip is of.
          wanted: pairs of sides that are compared; the first clip is of the first.
        """
        found = [np.empty((0, 3), np.int64)]
        for path in self._paths:
            entries = np.sort(np.fromfile(path, _ENTRY), order=("key", "clip"))
            found += [np.unique(np.concatenate(list(self._of(entries, side, wanted))), axis=0)]
            os.remove(path)
        return np.unique(np.concatenate(found), axis=0)

    def _of(
        self, entries: np.ndarray, side: np.ndarray, wanted: Sequence[tuple[int, int]]
    ) -> Iterator[np.ndarray]:
        yield np.empty((0, 3), np.int64)
        starts = np.flatnonzero(np.diff(entries["key"], prepend=np.uint64(2**64 - 1)))
        ends = np.append(starts[1:], len(entries))
        for begin, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            clip = entries["clip"][begin:end]
            number, flipped = clip >> 1, (clip & 1).astype(bool)
            for one, other in wanted:
                # The mirror image of one of two is enough.
                left = number[~flipped & (side[number] == one)]
                right = clip[side[number] == other]
                if not (len(left) and len(right)):
                    continue
                few = self._few(left), self._few(right)
                a, b = (each.ravel() for each in np.meshgrid(*few, indexing="ij"))
                good = a < b >> 1 if one == other else a != b >> 1
                yield np.stack([a, b >> 1, b & 1], axis=1)[good]

    def _few(self, clips: np.ndarray) -> np.ndarray:
        self.crowded += max(0, len(clips) - CROWD)
        return clips[:CROWD]
