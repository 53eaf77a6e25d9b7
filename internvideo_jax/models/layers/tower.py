"""Sizes of a stack of transformer blocks, and the tables of published ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from internvideo_jax.registry import suggest

Size = TypeVar("Size")


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """One stack of transformer blocks."""

    width: int
    depth: int
    heads: int
    hidden: int  # units of the MLP

    def flops(self, tokens: int) -> float:
        """Multiply-adds of a forward pass over `tokens` tokens of one example, times two."""
        linear = 2 * tokens * self.width * (4 * self.width + 2 * self.hidden)
        attention = 4 * tokens * tokens * self.width
        return float(self.depth * (linear + attention))


SMALLEST = TowerConfig(width=32, depth=2, heads=2, hidden=64)


def tower(width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> TowerConfig:
    """A tower whose hidden size truncates like the reference's `int(width * mlp_ratio)`."""
    return TowerConfig(width, depth, heads, int(width * mlp_ratio))


def preset_size(sizes: Mapping[str, Size], name: str) -> Size:
    """The entry of a table of sizes; ValueError with the near matches when there is none."""
    if name not in sizes:
        raise ValueError(f"unknown model size {name!r}: {suggest(name, sizes)}")
    return sizes[name]
