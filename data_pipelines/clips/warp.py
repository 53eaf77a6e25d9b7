"""Rotations, shears and translations of uint8 frames about their own grid, with PIL's geometry.

A map is a (2, 3) float64 matrix from output to input coordinates in pixels, in which the centre of
the first pixel is (0.5, 0.5), as PIL's `Image.transform` has it. Where it leads outside the frame,
the result is FILL; the border itself is repeated for the interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines.clips.colour import CUT

FILL = 128  # grey, the recipes' fill colour
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def rotation(degrees: float, height: int, width: int) -> np.ndarray:
    """Counter-clockwise about the centre; the frame keeps its size."""
    angle = -math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return np.array([[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]])


def shear_x(factor: float, height: int, width: int) -> np.ndarray:
    """Row y moves left by factor * y."""
    del height, width
    return np.array([[1.0, factor, 0.0], [0.0, 1.0, 0.0]])


def shear_y(factor: float, height: int, width: int) -> np.ndarray:
    """Column x moves up by factor * x."""
    del height, width
    return np.array([[1.0, 0.0, 0.0], [factor, 1.0, 0.0]])


def translation_x(share: float, height: int, width: int) -> np.ndarray:
    """Moves left by a share of the width."""
    del height
    return np.array([[1.0, 0.0, share * width], [0.0, 1.0, 0.0]])


def translation_y(share: float, height: int, width: int) -> np.ndarray:
    """Moves up by a share of the height."""
    del width
    return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, share * height]])


def warp(frames: Sequence[np.ndarray], matrix: np.ndarray, interpolation: str) -> list[np.ndarray]:
    """Applies one map to several frames of one shape.

    Translations have PIL's kernel and arithmetic. For the others OpenCV rounds positions to 1/32
    pixel and levels to the nearest one where PIL cuts off, and its cubic kernel has a = -0.75 where
    PIL's has -1: the mean difference is half a level, at sharp edges it is a few levels. A
    bit-exact kernel would cost several times as much.

    Args:
      frames: (H, W, 3) uint8 each.
      interpolation: one of INTERPOLATIONS.

    Returns:
      new arrays of the same shape.
    """
    height, width = frames[0].shape[:2]
    if (matrix[:, :2] == np.eye(2)).all():
        return [_translate(frame, matrix[:, 2], interpolation) for frame in frames]
    outside = _outside(matrix, height, width)
    shifted = matrix.copy()  # OpenCV counts from the centre of the first pixel
    shifted[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    grey = np.full_like(frames[0], FILL)
    flags = INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP
    results = []
    for frame in frames:
        result = cv2.warpAffine(
            frame, shifted, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        results.append(cv2.copyTo(grey, outside, result))
    return results


def _translate(frame: np.ndarray, shift: np.ndarray, interpolation: str) -> np.ndarray:
    """Output pixel (x, y) comes from (x, y) + shift: one filter, then a move by whole pixels."""
    kernels, moves = zip(*(_taps(part, interpolation) for part in shift), strict=True)
    filtered = cv2.sepFilter2D(frame, -1, *kernels, delta=CUT, borderType=cv2.BORDER_REPLICATE)
    result = np.full_like(frame, FILL)
    to, source = [], []
    for move, size in zip(moves[::-1], frame.shape, strict=False):
        low, high = min(max(-move, 0), size), max(min(size - move, size), 0)
        to.append(slice(low, high))
        source.append(slice(low + move, high + move))
    result[tuple(to)] = filtered[tuple(source)]
    return result


def _taps(shift: float, interpolation: str) -> tuple[np.ndarray, int]:
    """Five weights about the nearest whole pixel of a shift, and that whole number."""
    nearest, below = math.floor(shift + 0.5), math.floor(shift)
    d = shift - below
    if interpolation == "bilinear":
        weights = [0, 1 - d, d, 0]
    else:  # PIL's cubic, a = -1
        weights = [
            -d + 2 * d**2 - d**3,
            1 - 2 * d**2 + d**3,
            d + d**2 - d**3,
            -(d**2) + d**3,
        ]
    kernel = np.zeros(5)
    first = 1 + below - nearest  # the tap before `below`, counted from nearest - 2
    kernel[first : first + 4] = weights
    return kernel, nearest


def _outside(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) uint8, not 0 at the output pixels whose centre comes from outside the frame."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    inside = np.ones((height, width), bool)
    for (a, b, c), size in zip(matrix, (width, height), strict=True):
        source = a * x + b * y + c
        inside &= (source >= 0) & (source < size)
    return (~inside).view(np.uint8)
