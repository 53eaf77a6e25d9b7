"""Pictures a person would rather look at than a number: strips, animations, curves, tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def strip(rows: Sequence[np.ndarray], *, gap: int = 2, scale: int = 1) -> np.ndarray:
    """Clips below each other, frames side by side.

    Args:
      rows: (T, H, W, 3) uint8 each, all of one shape.
      scale: whole-number enlargement.

    Returns:
      (H', W', 3) uint8.
    """
    frames, height, width, _ = rows[0].shape
    canvas = np.full(
        (len(rows) * (height + gap) - gap, frames * (width + gap) - gap, 3), 255, np.uint8
    )
    for i, row in enumerate(rows):
        for t, frame in enumerate(row):
            y, x = i * (height + gap), t * (width + gap)
            canvas[y : y + height, x : x + width] = frame
    return canvas.repeat(scale, axis=0).repeat(scale, axis=1)


def side_by_side(clips: Sequence[np.ndarray], *, gap: int = 2, scale: int = 1) -> np.ndarray:
    """Clips next to each other as one: (T, H, W, 3) each -> (T, H', W', 3)."""
    bar = np.full((*clips[0].shape[:2], gap, 3), 255, np.uint8)
    parts = [part for clip in clips for part in (clip, bar)][:-1]
    return np.concatenate(parts, axis=2).repeat(scale, axis=1).repeat(scale, axis=2)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture (H, W, 3) uint8, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def write_gif(path: Path, clip: np.ndarray, fps: float = 6.0) -> None:
    """(T, H, W, 3) uint8 as an endless animation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(frame) for frame in clip]
    first.save(path, save_all=True, append_images=rest, duration=int(1000 / fps), loop=0)


def curve_svg(
    title: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    band: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None,
    mark: int = 0,
) -> str:
    """Line chart as inline SVG: name -> (steps, values).

    Args:
      band: (steps, low, high) of an area behind the lines.
      mark: a step that is marked by a line; 0: none.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    if band is not None:
        axes.fill_between(*band, alpha=0.2, linewidth=0)
    if mark:
        axes.axvline(mark, color="red", linewidth=0.8, linestyle="--")
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < 12 else "")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=7)
    text = io.StringIO()
    with rc_context({"svg.hashsalt": title}):  # else names in the drawing are random
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def confusion_picture(table: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(H, W, 3) uint8 heat map of a confusion table, rows normalised."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.32 * len(names)
    figure = Figure(figsize=(side + 1, side), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= 20:
        for (row, column), value in np.ndenumerate(table):
            if value:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(value), ha="center", va="center", fontsize=7, color=colour
                )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def grid_picture(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, axes_of: tuple[str, str]
) -> np.ndarray:
    """(H, W, 3) uint8 heat map of shares (R, C), the best cell framed.

    Args:
      rows, columns: what the lines and columns stand for.
      axes_of: titles of the vertical and of the horizontal axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    size = 2.5 + 0.6 * len(columns), 1.6 + 0.4 * len(rows)
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    axes = figure.add_subplot()
    low, high = float(values.min()), float(values.max())
    axes.imshow(values, cmap="Blues", aspect="auto", vmin=low, vmax=max(high, low + 1e-6))
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_ylabel(axes_of[0])
    axes.set_xlabel(axes_of[1])
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > (low + high) / 2 else "black"
        text = f"{100 * value:.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    row, column = divmod(int(values.argmax()), len(columns))
    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="green", linewidth=2)
    axes.add_patch(frame)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
