"""Position tables. All are built in float64 with numpy and enter the program as constants."""

from __future__ import annotations

import numpy as np

from internvideo_jax.ops.resize import resize_table

Grid = tuple[int, int, int]


def sincos(positions: int, width: int) -> np.ndarray:
    """The published table: one flat index over all space-time tokens, sine and cosine interleaved.

    Float32 angles would be off by 1e-4 at index 1500, hence float64 until the end.

    Returns:
      (positions, width) float32.
    """
    channel = np.arange(width)
    angle = np.arange(positions)[:, None] / np.power(10000.0, 2 * (channel // 2) / width)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def separable_sincos(grid: Grid, width: int) -> np.ndarray:
    """Time, row and column each get a third of the channels.

    Small models learn from it in half the steps, because neighbours in space and time look alike
    from the start. For configs of our own; no published weights use it.

    Returns:
      (t*h*w, width) float32.
    """
    part = 2 * (width // 6)
    widths = (width - 2 * part, part, part)
    tables = [sincos(size, share) for size, share in zip(grid, widths, strict=True)]
    t, h, w = np.meshgrid(*(np.arange(size) for size in grid), indexing="ij")
    columns = [table[index.ravel()] for table, index in zip(tables, (t, h, w), strict=True)]
    return np.concatenate(columns, axis=1)


def fixed_table(kind: str, grid: Grid, width: int, base: Grid) -> np.ndarray:
    """The table added to the tokens, (t*h*w, width) float32.

    Kinds:
      sincos: the flat table for this grid (VideoMAE, VideoMAE V2).
      resized: the flat table of the grid `base`, resized to this one, as InternVideo1 does when it
        fine-tunes at another size or length.
      separable: see `separable_sincos`.
    """
    if kind == "sincos":
        return sincos(int(np.prod(grid)), width)
    if kind == "resized":
        return resize_table(sincos(int(np.prod(base)), width), base, grid)
    if kind == "separable":
        return separable_sincos(grid, width)
    raise ValueError(
        f"unknown position table {kind!r}; known: sincos, resized, separable, learnable"
    )
