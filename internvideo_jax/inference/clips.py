"""Clips of single records, read ahead in threads and padded to batches of one shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from data_pipelines.stream.prefetch import in_order

AHEAD = 3  # batches prepared while the device works; bounds the memory

Row = TypeVar("Row")


def clip_batches(
    rows: Sequence[Row],
    read: Callable[[Row], np.ndarray | None],
    shape: tuple[int, ...],
    *,
    size: int,
    threads: int,
) -> Iterator[tuple[list[Row], np.ndarray, np.ndarray]]:
    """Batches of `size` clips: their rows, which could be read (n,) bool, and the pixels.

    The pixels (size, *shape) uint8 are 0 where a clip cannot be read, and beyond the last row.

    Args:
      read: gives the pixels of a row, or None where it cannot be read; runs in threads.
      shape: (T, H, W, 3) of a clip.
    """
    with ThreadPoolExecutor(threads) as pool:
        clips = in_order(pool, read, rows, (AHEAD - 1) * size)
        while part := list(itertools.islice(clips, size)):
            video = np.zeros((size, *shape), np.uint8)
            for position, (_, clip) in enumerate(part):
                if clip is not None:
                    video[position] = clip
            readable = np.array([clip is not None for _, clip in part])
            yield [row for row, _ in part], readable, video
