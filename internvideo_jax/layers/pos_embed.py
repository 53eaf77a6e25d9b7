"""Position tables, built with numpy: fixed ones as constants, and where learned ones start."""

from __future__ import annotations

import numpy as np

from internvideo_jax.ops.resize import resize_table

Grid = tuple[int, int, int]
SHARES = {"joint": 16, "separable": 4}  # what divides a width of sines and cosines on all axes


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


def halves_sincos(positions: np.ndarray, width: int) -> np.ndarray:
    """Sines in the first half of the channels, cosines in the second (MAE, InternVideo2).

    Frequencies and angles are float32, as where the published weights started.

    Args:
      positions: (n,) whole numbers.

    Returns:
      (n, width) float32.
    """
    half = width // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.float32(1) / np.float32(10000) ** exponent
    angle = positions.astype(np.float32)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def image_sincos(height: int, width: int, channels: int) -> np.ndarray:
    """(height*width, channels) float32: half the channels for the column, then half for the row."""
    rows, columns = np.divmod(np.arange(height * width), width)
    halves = [halves_sincos(positions, channels // 2) for positions in (columns, rows)]
    return np.concatenate(halves, axis=1)


def start_table(kind: str, grid: Grid, width: int) -> tuple[np.ndarray, ...]:
    """Where a learned table of InternVideo2 starts: sines and cosines.

    Channels that cannot be dealt out evenly, the last ones of a width that is no multiple of
    SHARES, start at 0. The published code refuses such widths where a table starts so; where it
    comes from a file they are as good as any.

    Args:
      kind: joint | separable.

    Returns:
      (t*h*w, width) for `joint`; (h*w, width) and (t, width) for `separable`; float32.
    """
    t, h, w = grid
    even = width // SHARES[kind] * SHARES[kind]
    if kind == "joint":
        tables = (joint_sincos(grid, even),)
    else:
        tables = (image_sincos(h, w, even), halves_sincos(np.arange(t), even))
    return tuple(np.pad(table, [(0, 0), (0, width - even)]) for table in tables)


def joint_sincos(grid: Grid, width: int) -> np.ndarray:
    """Where InternVideo2's joint table starts: a quarter of the channels for time, the rest space.

    Returns:
      (t*h*w, width) float32, without a row for a class token.

    Raises:
      ValueError: the width is no multiple of 16.
    """
    check_sincos_width(width, "joint")
    t, h, w = grid
    temporal = halves_sincos(np.arange(t), width // 4)
    spatial = image_sincos(h, w, width // 4 * 3)
    return np.concatenate([np.repeat(temporal, h * w, axis=0), np.tile(spatial, (t, 1))], axis=1)


def check_sincos_width(width: int, form: str) -> None:
    """ValueError unless the sines of a `joint` or `separable` table can share out the channels."""
    parts = SHARES[form]
    if width % parts:
        near = max(parts, width // parts * parts)
        raise ValueError(
            f"width {width} is no multiple of {parts}, which the sines that its {form} position "
            f"table starts from need; the nearest are {near} and {near + parts}"
        )


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
