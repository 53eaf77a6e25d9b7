"""Captions that say nearly the same.

Definition: two captions are near duplicates if the Jaccard similarity of their sets of word pairs
is at least `THRESHOLD`, after the clean-up of `clean_caption` (the single word where there is only
one). A row is a near duplicate if an earlier row is found that it is one of.

Candidates come from MinHash (Broder 1997) with BANDS bands of ROWS values; each is then compared
exactly with the first caption of its band. Of pairs with a similarity of 0.8 about 98 % share a
band, of 0.9 more than 99.8 %, of equal ones all. A caption that is compared only with the first of
its band may miss another one: the count is a lower bound. There are no false hits.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from data_pipelines.text.caption import clean_caption

THRESHOLD = 0.8
BANDS, ROWS = 4, 2
_EXAMPLES = 20

_generator = np.random.Generator(np.random.Philox(20230713))
_FACTORS = _generator.integers(1, 1 << 32, (BANDS * ROWS, 1), np.uint64) | np.uint64(1)
_OFFSETS = _generator.integers(0, 1 << 32, (BANDS * ROWS, 1), np.uint64)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def pairs(cleaned: str) -> frozenset[str]:
    """Neighbouring words of a cleaned caption; the word itself where there is only one."""
    words = cleaned.split()
    if len(words) < 2:
        return frozenset(words)
    return frozenset(f"{a} {b}" for a, b in itertools.pairwise(words))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Share of the union that both have; 1 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def bands(cleaned: str) -> list[int]:
    """BANDS numbers below 2^63; near duplicates have one in common at the same place, mostly."""
    hashes = np.array([zlib.crc32(pair.encode()) for pair in pairs(cleaned)] or [0], np.uint64)
    # The high half of a 64-bit multiply-add is a good hash of 32 bits (Dietzfelbinger).
    least = ((hashes * _FACTORS * _MIX + _OFFSETS) >> np.uint64(32)).min(axis=1)
    joined = least.reshape(BANDS, ROWS)
    return ((joined[:, 0] << np.uint64(31)) ^ joined[:, 1]).tolist()


def find(
    captions: Iterable[tuple[int, str]], flags: np.ndarray, scratch: str, bytes_in: int
) -> dict[str, Any]:
    """Flags near duplicates among the captions of a list of any length.

    Args:
      captions: (row, caption), rows increasing.
      flags: (n,) uint8, set to 1 at rows that have an earlier near duplicate.
      scratch: an empty folder for some 4 times the captions.
      bytes_in: about how many bytes of captions there are; sets the number of files.

    Returns:
      counts and examples for the summary.
    """
    # One part at a time is in memory, about three times its size.
    parts = min(max(1, BANDS * bytes_in // (32 << 20)), 500)
    files = [open(os.path.join(scratch, f"{i:03d}"), "wb", 1 << 16) for i in range(parts)]  # noqa: SIM115
    read = 0
    try:
        for row, caption in captions:
            read += 1
            cleaned = clean_caption(caption)
            text = " ".join(cleaned.split())
            for band, key in enumerate(bands(cleaned)):
                files[key % parts].write(f"{band} {key} {row} {text}\n".encode("utf-8", "replace"))
    finally:
        for file in files:
            file.close()
    examples: list[dict[str, Any]] = []
    largest: Counter[str] = Counter()
    for file in files:
        _compare(file.name, flags, examples, largest)
        os.remove(file.name)
    examples.sort(key=lambda example: (example["row"], example["of"]))
    return {
        "definition": f"Jaccard of word pairs >= {THRESHOLD} with an earlier caption, after "
        f"clean_caption; found by MinHash, {BANDS} bands of {ROWS}, compared exactly",
        "captions": read,
        "near_duplicates": int(np.count_nonzero(flags)),
        "largest_groups": [
            {"caption": text, "near_duplicates": size}
            for text, size in sorted(largest.items(), key=lambda item: (-item[1], item[0]))[
                :_EXAMPLES
            ]
        ],
        "examples": examples[:_EXAMPLES],
    }


def _compare(
    path: str, flags: np.ndarray, examples: list[dict[str, Any]], largest: Counter[str]
) -> None:
    first: dict[bytes, tuple[int, str]] = {}
    groups: Counter[tuple[str, str]] = Counter()
    with open(path, "rb") as file:
        for line in file:
            band, key, number, text = line.rstrip(b"\n").decode().split(" ", 3)
            row = int(number)
            name = f"{band} {key}".encode()
            leader = first.setdefault(name, (row, text))
            if leader[0] == row:
                continue
            if leader[1] == text or jaccard(pairs(leader[1]), pairs(text)) >= THRESHOLD:
                if not flags[row] and len(examples) < 50 * _EXAMPLES:
                    examples.append({"row": row, "of": leader[0], "captions": [leader[1], text]})
                flags[row] = 1
                groups[band, leader[1]] += 1
    for (_, text), size in groups.items():  # most groups meet in several bands
        if size > largest[text]:
            largest[text] = size
    for text, _ in largest.most_common()[50 * _EXAMPLES :]:
        del largest[text]
