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

    Positions are rounded to 1/32 pixel, and levels to the nearest one where PIL cuts off: the mean
    difference is half a level, and a few levels at sharp edges. A bit-exact kernel would cost
    several times as much.

    Args:
      frames: (H, W, 3) uint8 each.
      interpolation: one of INTERPOLATIONS.

    Returns:
      new arrays of the same shape.
    """
    height, width = frames[0].shape[:2]
    outside = _outside(matrix, height, width)
    shifted = matrix.copy()  # OpenCV counts from the centre of the first pixel
    shifted[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    flags = INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP
    results = []
    for frame in frames:
        result = cv2.warpAffine(
            frame, shifted, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        result.reshape(-1, 3)[outside] = FILL
        results.append(result)
    return results


def _outside(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Flat numbers of the output pixels whose centre comes from outside the frame."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    inside = np.ones((height, width), bool)
    for (a, b, c), size in zip(matrix, (width, height), strict=True):
        source = a * x + b * y + c
        inside &= (source >= 0) & (source < size)
    return np.flatnonzero(~inside)
