"""Resizing of position tables and of frames for teachers, with the kernels of the reference.

`jax.image.resize` cannot stand in: its cubic kernel has a = -0.5 and it antialiases when shrinking,
the published tables were made with a = -0.75 and without.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.ops.pixels import to_unit


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


def resize_frames(video: jax.Array, size: int) -> jax.Array:
    """Frames of another size: bicubic, as tables are; values may leave 0..1 a little.

    Args:
      video: (B, T, H, W, 3) uint8, or float in 0..1.
      size: height and width wanted, pixels.

    Returns:
      (B, T, size, size, 3) float32 in 0..1; `video` as it is when it has that size.
    """
    height, width = video.shape[2:4]
    if (height, width) == (size, size):
        return video
    rows, columns = (
        jnp.asarray(cubic_weights(side, size), jnp.float32) for side in (height, width)
    )
    exact = jax.lax.Precision.HIGHEST  # a TPU would multiply in bfloat16
    tall = jnp.einsum("bthwc,yh->btywc", to_unit(video), rows, precision=exact)
    return jnp.einsum("btywc,xw->btyxc", tall, columns, precision=exact)


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
