"""Damage of every kind to the bytes of a record."""

from __future__ import annotations

from hypothesis import strategies as st


def damaged(whole: bytes, most: int = 6) -> st.SearchStrategy[bytes]:
    """`whole` with at most `most` bytes changed, cut anywhere."""

    def damage(changes: list[tuple[int, int]], length: int) -> bytes:
        data = bytearray(whole)
        for position, value in changes:
            data[position] = value
        return bytes(data[:length])

    changes = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))
    return st.builds(damage, st.lists(changes, max_size=most), st.integers(0, len(whole)))
