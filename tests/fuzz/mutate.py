"""Seeded damage: what happens to files on the way, and what people with time make of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

# Numbers and texts on which parsers trip.
HARD = (
    *(number.to_bytes(8, "little") for number in (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)),
    *(b"\xff" * count for count in (1, 2, 4, 8)),
    *(text.encode() for text in ("-1", "1e999", "nan", "9" * 400, "1" * 5000, "\u2028", "'", '"')),
    *(b"\0", b"\r", b"\n", b"[" * 2000, b'{"a":' * 2000, b"\xed\xa0\x80", b"\xef\xbb\xbf", b"../"),
)


def inputs(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged copies of the seeds, the same for the same `seed`."""
    rng = random.Random(seed)
    for number in range(count):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            rng.choice((_flip, _cut, _remove, _repeat, _insert, _overwrite, _digit))(data, rng)
        yield bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 8, 64))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    part = data[at : at + rng.choice((1, 4, 16, 64))]
    data[at:at] = part * rng.choice((1, 2, 20))


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.choice(HARD)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    at, hard = _place(data, rng), rng.choice(HARD)
    data[at : at + len(hard)] = hard


def _digit(data: bytearray, rng: random.Random) -> None:
    """Another number where one is written out."""
    places = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice((b"-1", b"0", b"99999999999999999999", b"1e9", b".5", b""))
