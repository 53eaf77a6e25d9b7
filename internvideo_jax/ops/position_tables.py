"""Learnable position tables of other clips and lengths, as those of this model.

InternVideo2 has two forms, `joint`: a row for every patch token of the clip, time-major, and before
them one for the class token; `separable`: a row for every position, one for every time step, one
for the class token. CLIP has a table of one image and one of text. VideoMAE's has patches only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.ops.resize import linear_weights, resize_table

Grid = tuple[int, int, int]
FORMS = ("joint", "separable")
JOINT, SPATIAL, TEMPORAL, CLASS = "table", "spatial", "temporal", "cls"


def resize_joint(table: np.ndarray, frames: int, to: Grid, *, leading: int = 1) -> np.ndarray:
    """A joint table for another clip: linear in time, bicubic in space, leading rows stay.

    Args:
      table: (leading + t*s*s, D) with t = `frames`.
      frames: time steps of `table`. The reference takes 8 for every file; a wrong number mixes
        positions with times.
      to: (t, h, w) of the clip.
      leading: rows of tokens that have no position: 1 with a class token.

    Returns:
      (leading + t*h*w, D) in the dtype of `table`.

    Raises:
      ValueError: `frames` time steps of a square image do not give these rows.
    """
    rows = len(table) - leading
    side = _side(rows // frames) if rows % frames == 0 else 0
    if not side:
        fitting = [time for time in range(1, rows + 1) if rows % time == 0 and _side(rows // time)]
        raise ValueError(
            f"a position table of {rows} rows is no square grid over {frames} time steps; set "
            f"config.model.pos_frames to those that it was made for, one of {fitting}"
        )
    positions = resize_table(table[leading:], (frames, side, side), to)
    return np.concatenate([table[:leading], positions])


def resize_positions(table: np.ndarray, to: Grid) -> np.ndarray:
    """The positions of a separable table, (s*s, D) -> (h*w, D), bicubic.

    Raises:
      ValueError: its places are no square.
    """
    side = _side(len(table))
    if not side:
        raise ValueError(f"a table of {len(table)} positions is not that of a square grid")
    return resize_table(table, (1, side, side), (1, *to[1:]))


def resize_times(table: np.ndarray, to: Grid) -> np.ndarray:
    """The time steps of a separable table, (t, D) -> (T, D), linear."""
    if len(table) == to[0]:
        return table
    stretched = linear_weights(len(table), to[0]) @ table.astype(np.float64)
    return stretched.astype(table.dtype)


def _side(positions: int) -> int:
    """Edge of a square of so many positions; 0 if it is none."""
    side = round(positions**0.5)
    return side if side * side == positions else 0


def adapt_tables(
    source: Mapping[str, np.ndarray],
    prefix: str,
    *,
    form: str,
    grid: Grid,
    frames: int,
    known: bool = False,
    leading: int = 1,
) -> dict[str, np.ndarray]:
    """Weights with the position tables under `prefix` made those of `grid`.

    A table that has the rows of `grid` already is taken as it is, unless it is known to be of
    another grid.

    Args:
      source: by path; tables that it lacks stay away.
      prefix: `encoder/pos_embed`.
      form: of the model, one of FORMS.
      frames: time steps of a joint table in `source`.
      known: that it has these time steps, also where its rows are those of `grid`.
      leading: rows before the patches: 1 with a class token, else 0.

    Raises:
      ValueError: the other form, or rows that do not fit `frames`.
    """
    adapted = dict(source)
    names = {leaf: f"{prefix}/{leaf}" for leaf in (JOINT, SPATIAL, TEMPORAL)}
    other = names[JOINT if form == "separable" else SPATIAL]
    if other in source:
        stated = "joint" if form == "separable" else "separable"
        raise ValueError(
            f"the weights have a {stated} position table ({other}), the model a {form} one; set "
            f"config.model.pos_table to {stated!r}"
        )
    joint, spatial, temporal = names.values()
    same = joint in source and len(source[joint]) == leading + int(np.prod(grid))
    if joint in source and not (same and (frames == grid[0] or not known)):
        adapted[joint] = resize_joint(source[joint], frames, grid, leading=leading)
    if spatial in source:
        adapted[spatial] = resize_positions(source[spatial], grid)
    if temporal in source:
        adapted[temporal] = resize_times(source[temporal], grid)
    return adapted


def resize_image(table: np.ndarray, side: int) -> np.ndarray:
    """A CLIP table for another number of patches: bicubic, the class token's row stays.

    Args:
      table: (1 + s*s, D).
      side: patches along an edge.

    Returns:
      (1 + side*side, D) in the dtype of `table`.

    Raises:
      ValueError: the positions of `table` are no square.
    """
    old = round((len(table) - 1) ** 0.5)
    if 1 + old * old != len(table):
        raise ValueError(
            f"a position table of {len(table)} rows is not that of a class token and a square grid"
        )
    positions = resize_table(table[1:], (1, old, old), (1, side, side))
    return np.concatenate([table[:1], positions])


def resize_length(table: np.ndarray, rows: int, *, longer: str) -> np.ndarray:
    """A table of frames or text positions for another length; a shorter one is its beginning.

    Args:
      table: (n, D).
      longer: `linear` stretches the table (another ViCLIP), `zero` appends zeros (text of CLIP).

    Returns:
      (rows, D) in the dtype of `table`.
    """
    if rows <= len(table):
        return table[:rows]
    if longer == "linear":
        stretched = linear_weights(len(table), rows) @ table.astype(np.float64)
        return stretched.astype(table.dtype)
    if longer == "zero":
        return np.pad(table, [(0, rows - len(table)), (0, 0)])
    raise ValueError(f"unknown rule {longer!r} for a longer table; known: linear, zero")


def resize_patches(
    table: np.ndarray, rows: int, known: Mapping[str, int], grid: Grid
) -> tuple[np.ndarray, bool]:
    """A table of patches alone on the grid of a model, and whether it was another one.

    Args:
      table: (t*h*w, D).
      rows: of the model's table.
      known: what is known of the model that it comes from: `frames`, `tubelet`, `size`, `patch`.
      grid: (t, h, w) of the model.

    Raises:
      ValueError: it is no square grid over the time steps.
    """
    its = grid if len(table) == rows and "frames" not in known else None
    its = its or _source_grid(len(table), known, grid)
    return resize_table(table, its, grid), its != grid


def _source_grid(rows: int, found: Mapping[str, int], grid: Grid) -> Grid:
    """The token grid (time, height, width) of a learnable position table of `rows` rows.

    A run says it. A weight file does not: then, as in the reference, the table is of as many frames
    as the model takes, and its frames are square.

    Raises:
      ValueError: it is not.
    """
    if {"patch", "tubelet", "frames", "resolution"} <= found.keys():
        side = found["resolution"] // found["patch"]
        return found["frames"] // found["tubelet"], side, side
    side = round((rows / grid[0]) ** 0.5)
    if grid[0] * side * side == rows:
        return grid[0], side, side
    squares = [time for time in range(1, rows + 1) if _square(rows, time)]
    raise ValueError(
        f"its position table has {rows} rows, which is no square grid over the {grid[0]} "
        f"time steps of config.model.frames. A file does not say its own, and is resized in space "
        f"only; numbers of time steps that would give a square: {squares}"
    )


def _square(rows: int, time: int) -> bool:
    return rows % time == 0 and round((rows // time) ** 0.5) ** 2 == rows // time
