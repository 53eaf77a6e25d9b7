"""Resizing of position tables, with the kernels of the reference.

`jax.image.resize` cannot stand in: its cubic kernel has a = -0.5 and it antialiases when shrinking,
the published tables were made with a = -0.75 and without.
"""

from __future__ import annotations

import numpy as np


def resize_table(
    table: np.ndarray, grid: tuple[int, int, int], to: tuple[int, int, int]
) -> np.ndarray:
    """Resizes a space-time position table: bicubic in space per time step, then linear in time.

    Args:
      table: (t*h*w, D) for `grid` = (t, h, w), float.
      to: (t, h, w) wanted.

    Returns:
      (t*h*w, D) in the dtype of `table`; unchanged when the grids agree.
    """
    if table.shape[0] != int(np.prod(grid)):
        raise ValueError(f"position table has {table.shape[0]} rows, grid {grid} needs another")
    values = table.reshape(*grid, -1).astype(np.float64)
    if grid[1:] != to[1:]:
        rows = cubic_weights(grid[1], to[1])
        columns = cubic_weights(grid[2], to[2])
        values = np.einsum("thwd,yh,xw->tyxd", values, rows, columns, optimize=True)
    if grid[0] != to[0]:
        values = np.einsum("thwd,st->shwd", values, linear_weights(grid[0], to[0]))
    return values.reshape(-1, table.shape[1]).astype(table.dtype)


def cubic_weights(size: int, to: int) -> np.ndarray:
    """(to, size) bicubic interpolation matrix: half-pixel centres, a = -0.75, clamped border."""
    a = -0.75
    position = (np.arange(to) + 0.5) * (size / to) - 0.5
    base = np.floor(position).astype(int)
    weights = np.zeros((to, size))
    for tap in range(-1, 3):
        x = np.abs(position - (base + tap))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        value = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(weights, (np.arange(to), np.clip(base + tap, 0, size - 1)), value)
    return weights


def linear_weights(size: int, to: int) -> np.ndarray:
    """(to, size) linear interpolation matrix: half-pixel centres, coordinates clamped at 0."""
    position = np.maximum((np.arange(to) + 0.5) * (size / to) - 0.5, 0.0)
    low = np.minimum(np.floor(position).astype(int), size - 1)
    fraction = position - low
    weights = np.zeros((to, size))
    np.add.at(weights, (np.arange(to), low), 1 - fraction)
    np.add.at(weights, (np.arange(to), np.minimum(low + 1, size - 1)), fraction)
    return weights
