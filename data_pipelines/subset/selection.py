"""Exact selections over columns that lie on disk, in memory that does not grow with them.

Columns are `numpy.memmap`s with one entry per row. `state` says which rows are still in: 0. A
selection gives those that go another number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CHUNK = 1 << 20  # rows looked at a time
PARTITION = 1 << 21  # keys counted at a time


def chunks(rows: int) -> Iterator[slice]:
    for begin in range(0, rows, CHUNK):
        yield slice(begin, min(begin + CHUNK, rows))


def count(state: np.ndarray, value: int = 0) -> int:
    """How many rows have that state."""
    return sum(int(np.count_nonzero(state[part] == value)) for part in chunks(len(state)))


def keep_largest(values: np.ndarray, state: np.ndarray, wanted: int, mark: int) -> float | None:
    """Marks all rows that are in except the `wanted` largest; of equal ones the first stay.

    Args:
      values: (n,) float64, finite where the row is in.

    Returns:
      The smallest value that stays; None if nothing was to be marked.
    """
    if wanted >= count(state):
        return None
    if wanted == 0:
        for part in chunks(len(values)):
            rows = state[part]
            rows[rows == 0] = mark
        return None
    threshold, equal = _threshold(values, state, wanted)
    for part in chunks(len(values)):
        rows, ordered = state[part], _ordered(values[part])
        inside = rows == 0
        ties = np.flatnonzero(inside & (ordered == threshold))
        rows[inside & (ordered < threshold)] = mark
        rows[ties[equal:]] = mark
        equal -= min(equal, len(ties))
    return float(_value(threshold))


def _threshold(values: np.ndarray, state: np.ndarray, wanted: int) -> tuple[int, int]:
    """The `wanted`-th largest as ordered bits, and how many rows equal to it stay.

    Sixteen bits at a time from the top, each time a histogram over all rows.
    """
    prefix, left = 0, wanted
    for shift in (48, 32, 16, 0):
        histogram = np.zeros(1 << 16, np.int64)
        for part in chunks(len(values)):
            bits = _ordered(values[part])[state[part] == 0]
            if shift < 48:
                bits = bits[bits >> np.uint64(shift + 16) == prefix]
            digit = (bits >> np.uint64(shift)) & np.uint64(0xFFFF)
            histogram += np.bincount(digit.astype(np.int64), minlength=1 << 16)
        above = np.cumsum(histogram[::-1])
        place = int(np.searchsorted(above, left))
        digit = (1 << 16) - 1 - place
        left -= int(above[place - 1]) if place else 0
        prefix = prefix << 16 | digit
    return prefix, left


_SIGN = np.uint64(1 << 63)


def _ordered(values: np.ndarray) -> np.ndarray:
    """uint64 in the order of the numbers; -0 is 0."""
    bits = (np.asarray(values, np.float64) + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _value(ordered: int) -> np.float64:
    bits = ordered & ~(1 << 63) if ordered >> 63 else ~ordered & (1 << 64) - 1
    return np.array([bits], np.uint64).view(np.float64)[0]


def partitions(keys: np.ndarray, state: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, their keys) of the rows that are in; equal keys come together, about PARTITION rows.

    Args:
      keys: (n,) uint64, evenly spread (hashes).
    """
    parts = max(1, -(-count(state) // PARTITION))
    for number in range(parts):
        rows, found = [], []
        for part in chunks(len(keys)):
            some = keys[part]
            hits = np.flatnonzero((state[part] == 0) & (some % np.uint64(parts) == number))
            rows.append(hits + part.start)
            found.append(some[hits])
        if rows:
            yield np.concatenate(rows), np.concatenate(found)


def occurrences(keys: np.ndarray, state: np.ndarray, out: np.ndarray) -> int:
    """Writes for every row that is in how many rows that are in have its key.

    Args:
      out: (n,) integers, written at those rows only.

    Returns:
      The number of different keys.
    """
    different = 0
    for rows, some in partitions(keys, state):
        names, place, counts = np.unique(some, return_inverse=True, return_counts=True)
        out[rows] = counts[place]
        different += len(names)
    return different


def mark_repeats(keys: np.ndarray, state: np.ndarray, mark: int) -> int:
    """Marks the rows whose key an earlier row that is in has; returns how many."""
    marked = 0
    for rows, some in partitions(keys, state):
        later = np.ones(len(rows), bool)
        later[np.unique(some, return_index=True)[1]] = False
        state[rows[later]] = mark
        marked += int(later.sum())
    return marked
