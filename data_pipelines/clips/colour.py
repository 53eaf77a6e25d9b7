"""Colour operations on (H, W, 3) uint8 RGB frames, with the arithmetic of PIL.

None changes its input. Except for ties in rounding the results are PIL's (`ImageOps`,
`ImageEnhance`), level for level: sums use PIL's integer weights, blends truncate as PIL's do.
"""

from __future__ import annotations

import cv2
import numpy as np

LEVELS = np.arange(256)
# PIL's luma weights over 65536: products and sums of 8-bit levels are exact in float32.
LUMA = np.array([[19595, 38470, 7471]], np.float64) / 65536
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
# OpenCV rounds to the nearest level, PIL cuts off: half a level less, and a little more than the
# error of a float32 sum, so that whole numbers stay what they are.
CUT = -0.5 + 2e-4


def look_up(frame: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replaces every level; `table` is (256,), or (256, 3) with one column per colour."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(frame, table[None] if table.ndim == 2 else table)


def luma(frame: np.ndarray) -> np.ndarray:
    """(H, W) uint8 grey levels, 0.299 R + 0.587 G + 0.114 B."""
    return cv2.transform(frame, LUMA)


def blend(base: np.ndarray, frame: np.ndarray, factor: float) -> np.ndarray:
    """base + factor * (frame - base), cut off and clipped; a factor above 1 extrapolates."""
    return cv2.addWeighted(frame, factor, base, 1.0 - factor, CUT)


def invert(frame: np.ndarray) -> np.ndarray:
    """The negative of a frame."""
    return cv2.bitwise_not(frame)


def autocontrast(frame: np.ndarray) -> np.ndarray:
    """Stretches every colour of the frame to the full range; a flat colour stays."""
    table = np.empty((256, 3), np.int64)
    for channel, plane in enumerate(cv2.split(frame)):
        low, high, *_ = cv2.minMaxLoc(plane)
        if high <= low:
            table[:, channel] = LEVELS
        else:
            scale = 255.0 / (high - low)
            table[:, channel] = (LEVELS * scale - low * scale).astype(np.int64)
    return look_up(frame, table)


def equalize(frame: np.ndarray) -> np.ndarray:
    """Flattens the histogram of every colour of the frame."""
    table = np.empty((256, 3), np.int64)
    for channel in range(3):
        counts = cv2.calcHist([frame], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        used = counts[counts > 0]
        step = int(counts.sum() - used[-1]) // 255
        if len(used) <= 1 or step == 0:
            table[:, channel] = LEVELS
        else:
            table[:, channel] = (step // 2 + np.cumsum(counts) - counts) // step
    return look_up(frame, table)


def posterize(frame: np.ndarray, bits: float) -> np.ndarray:
    """Keeps the upper `bits` bits of every level (whole number, 0..8)."""
    return look_up(frame, LEVELS & ~(2 ** (8 - int(bits)) - 1))


def solarize(frame: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts the levels from `threshold` on."""
    return look_up(frame, np.where(threshold > LEVELS, LEVELS, 255 - LEVELS))


def solarize_add(frame: np.ndarray, levels: float) -> np.ndarray:
    """Adds `levels` (whole number) to the levels below 128."""
    return look_up(frame, np.where(LEVELS < 128, LEVELS + int(levels), LEVELS))


def brightness(frame: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black: 0 is black, 1 unchanged."""
    return look_up(frame, LEVELS.astype(np.float32) * np.float32(factor))


def contrast(frame: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the rounded mean grey of the frame."""
    grey = int(cv2.mean(luma(frame))[0] + 0.5)
    difference = (LEVELS - grey).astype(np.float32)
    return look_up(frame, np.float32(grey) + np.float32(factor) * difference)


def saturation(frame: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the grey version of the frame (PIL's Color)."""
    grey = cv2.cvtColor(luma(frame), cv2.COLOR_GRAY2RGB)
    return blend(grey, frame, factor)


def sharpness(frame: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a slightly smoothed frame; the outermost pixels stay."""
    smooth = cv2.filter2D(frame, -1, SMOOTH)
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        smooth[border] = frame[border]
    return blend(smooth, frame, factor)


def hue(frame: np.ndarray, turn: float) -> np.ndarray:
    """Turns the hue by `turn` of the full circle, -0.5..0.5."""
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV_FULL)
    table = np.stack([(LEVELS + round(turn * 256)) % 256, LEVELS, LEVELS], axis=-1)
    return cv2.cvtColor(look_up(hsv, table), cv2.COLOR_HSV2RGB_FULL)


def shift_hsv(frame: np.ndarray, hue: int, saturation: int, value: int) -> np.ndarray:
    """Adds whole levels in HSV: hue wraps at 180, the others clip at 0 and 255.

    The jitter of the reference's spatio-temporal localisation.
    """
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
    table = np.stack([(LEVELS + hue) % 180, LEVELS + saturation, LEVELS + value], axis=-1)
    return cv2.cvtColor(look_up(hsv, table), cv2.COLOR_HSV2RGB)
