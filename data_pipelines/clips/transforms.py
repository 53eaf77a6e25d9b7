"""Crops, resizes and flips of uint8 clips.

Every random choice comes from an explicit `numpy.random.Generator`, and is the same for all frames
of a clip. Boxes are (y, x, height, width). Pixels stay uint8; normalising is the device's work.
Nothing changes its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

Box = tuple[int, int, int, int]

# The pipeline has its own threads; OpenCV's pool would only fight with them.
cv2.setNumThreads(0)

SQUASH = "squash"  # the rule of crop_boxes that does not cut

MULTISCALE = (1.0, 0.875, 0.75, 0.66)

# How pixels are resized. `bilinear` and `bicubic` take 2 or 4 neighbours per axis even when
# shrinking, as OpenCV and torch do (bicubic a = -0.75). `area` averages when shrinking in both
# directions and is bilinear otherwise: the fast stand-in for PIL's filters. The `pil_` methods are
# those filters themselves, antialiased, for protocols that are to match level for level.
RESIZE = ("area", "bilinear", "bicubic", "pil_bilinear", "pil_bicubic")


def multiscale_sides(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """(width, height) pairs that MultiScaleCrop chooses from (VideoMAE pre-training)."""
    short = min(height, width)
    sides = [int(short * scale) for scale in MULTISCALE]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    return [
        (sides[j], sides[i])
        for i in range(len(sides))
        for j in range(len(sides))
        if abs(i - j) <= 1
    ]


def multiscale_offsets(height: int, width: int, box: tuple[int, int]) -> list[tuple[int, int]]:
    """The 13 fixed (x, y) positions of a (width, height) box: corners, edges, centre, quarters."""
    x, y = (width - box[0]) // 4, (height - box[1]) // 4
    grid = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)]
    quarters = [(1, 1), (3, 1), (1, 3), (3, 3)]
    return [(i * x, j * y) for i, j in grid + quarters]


def multiscale_crop(height: int, width: int, size: int, rng: np.random.Generator) -> Box:
    """A box of one of four scales at one of 13 positions, nearly square."""
    pairs = multiscale_sides(height, width, size)
    box = pairs[rng.integers(len(pairs))]
    offsets = multiscale_offsets(height, width, box)
    x, y = offsets[rng.integers(len(offsets))]
    return y, x, box[1], box[0]


def random_resized_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A box of uniform area share and log-uniform aspect ratio; ten tries, then the centre."""
    for _ in range(10):
        wanted = height * width * rng.uniform(area[0], area[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_box(height: int, width: int, size: int, rng: np.random.Generator) -> Box:
    """A square box at a uniform position; `size` at most the shorter side."""
    return int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1)), size, size


def jittered_side(sides: tuple[int, int], rng: np.random.Generator) -> int:
    """A short side, uniform between the two ends, rounded (SlowFast's scale jitter)."""
    return round(rng.uniform(*sides))


def short_side_shape(height: int, width: int, short: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `short`, the longer one truncated."""
    if height < width:
        return short, int(short * width / height)
    return int(short * height / width), short


def center_box(height: int, width: int, size: int) -> Box:
    """The square of `size` pixels in the middle, as (y, x, height, width)."""
    return round((height - size) / 2), round((width - size) / 2), size, size


def crop_boxes(height: int, width: int, size: int, crops: int, rule: str = "even") -> list[Box]:
    """`crops` square boxes along the longer side of a frame whose shorter side is `size`.

    Rules: `even` spaces them evenly and truncates (VideoMAE); `slowfast` rounds the middle one up
    (UniFormerV2, one or three crops); `corners` takes the four corners, row by row, and the centre
    (five crops). One crop is the centre, rounded half to even. `truncated` is `even` but for one
    crop, whose place is truncated too (InternVideo2). `squash` is no cut: the caller scales the
    whole frame to a square, bicubically (ViCLIP's evaluation, one crop).
    """
    if rule == SQUASH and crops == 1:
        return [(0, 0, height, width)]
    if crops == 1 and rule in ("even", "corners"):
        return [center_box(height, width, size)]
    if rule == "corners" and crops == 5:
        bottom, right = height - size, width - size
        corners = [(y, x, size, size) for y in (0, bottom) for x in (0, right)]
        return [*corners, center_box(height, width, size)]
    room = max(height, width) - size
    if rule == "truncated" and crops == 1:
        starts = [int(room / 2)]
    elif rule in ("even", "truncated"):
        starts = [int(i * (room / (crops - 1))) for i in range(crops)]
    elif rule == "slowfast" and crops in (1, 3):
        starts = [0, math.ceil(room / 2), room] if crops == 3 else [math.ceil(room / 2)]
    else:
        raise ValueError(
            f"crop rule {rule!r} with {crops} crops; known: even, truncated, slowfast (1 or 3 "
            "crops), corners (5 crops), squash (1 crop)"
        )
    if height > width:
        return [(start, 0, size, size) for start in starts]
    return [(0, start, size, size) for start in starts]


def resize(
    frame: np.ndarray, height: int, width: int, method: str, out: np.ndarray | None = None
) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3) uint8, both directions freely (a squash).

    Args:
      method: one of RESIZE.
      out: written into if given, and returned.
    """
    if method.startswith("pil_"):
        result = _pil_resize(frame, height, width, method)
        if out is None:
            return result
        out[...] = result
        return out
    interpolation = _opencv(method, frame, height, width)
    if out is not None and out.flags.c_contiguous:  # what OpenCV can write into
        return cv2.resize(frame, (width, height), dst=out, interpolation=interpolation)
    result = cv2.resize(frame, (width, height), interpolation=interpolation)
    if out is None:
        return result
    out[...] = result
    return out


def _opencv(method: str, frame: np.ndarray, height: int, width: int) -> int:
    if method == "area":
        shrinking = frame.shape[0] > height and frame.shape[1] > width
        return cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[method]


def _pil_resize(frame: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    from PIL import Image  # only the exact protocols need it

    kernel: Any = {
        "pil_bilinear": Image.Resampling.BILINEAR,
        "pil_bicubic": Image.Resampling.BICUBIC,
    }[method]
    return np.asarray(Image.fromarray(frame).resize((width, height), kernel))


def resize_short_side(frame: np.ndarray, short: int, method: str = "bilinear") -> np.ndarray:
    """(H, W, 3) uint8 with its shorter side at `short`; the frame itself if it already is."""
    height, width = short_side_shape(frame.shape[0], frame.shape[1], short)
    if (height, width) == frame.shape[:2]:
        return frame
    return resize(frame, height, width, method)


def crop_resize(
    frames: Sequence[np.ndarray],
    box: Box,
    size: int,
    *,
    method: str = "area",
    flip: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cuts `box` out of every frame and scales it to size x size.

    Args:
      frames: (H, W, 3) uint8 each, all of one shape; the same object may appear several times and
        is then resized once.
      method: one of RESIZE.
      flip: mirror left-right.
      out: (T, size, size, 3) uint8 to write into.

    Returns:
      (T, size, size, 3) uint8.
    """
    y, x, height, width = box
    out = np.empty((len(frames), size, size, 3), np.uint8) if out is None else out
    first: dict[int, int] = {}
    for i, frame in enumerate(frames):
        if (done := first.setdefault(id(frame), i)) != i:
            out[i] = out[done]
            continue
        patch = frame[y : y + height, x : x + width]
        if flip:
            out[i] = cv2.flip(resize(patch, size, size, method), 1)
        else:
            resize(patch, size, size, method, out[i])
    return out
