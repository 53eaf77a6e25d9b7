"""YUV planes of any matrix and range as JPEG has them: BT.601, full range.

swscale's conversion between ranges cuts chroma off instead of rounding it, which makes images
half a level greener and one level less blue; between matrices it goes through RGB and loses one to
two levels of everything. Here every level is rounded to the nearest.
"""

import functools

import cv2
import numpy as np

# Weights of red and blue in the luma, by the number of the matrix (AVColorSpace, ITU-T H.273);
# whatever is not here counts as BT.601, as it does for players.
_MATRICES = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
    10: (0.2627, 0.0593),
}
_JPEG = (0.299, 0.114)
_LUMA_GAIN, _CHROMA_GAIN = 255 / 219, 255 / 224  # limited range -> full range

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


def to_jpeg(planes: Planes, matrix: int, full: bool) -> Planes:
    """Convert 8-bit 4:2:0 planes.

    Args:
      planes: Y (H, W) with H and W even, U and V (H/2, W/2), uint8; not changed.
      matrix: number of the matrix they are in.
      full: whether levels go from 0 to 255 instead of 16 to 235 (chroma 16 to 240).
    """
    luma, u, v = planes
    # One gain and offset per plane, in float32: three times as fast as a table.
    if matrix in _MATRICES:
        # Grey stays grey, so the new chroma comes from chroma alone, and luma gets a share of it.
        u, v, share = cv2.split(cv2.transform(cv2.merge((u, v)), _mix(matrix, full)))
        share = cv2.resize(share, luma.shape[::-1], interpolation=cv2.INTER_LINEAR)
        gain, black = (1.0, 0) if full else (_LUMA_GAIN, 16)
        return cv2.addWeighted(luma, gain, share, 1.0, -128 - gain * black), u, v
    if full:
        return planes
    middle = 128 - 128 * _CHROMA_GAIN
    return (
        cv2.addWeighted(luma, _LUMA_GAIN, luma, 0.0, -16 * _LUMA_GAIN),
        cv2.addWeighted(u, _CHROMA_GAIN, u, 0.0, middle),
        cv2.addWeighted(v, _CHROMA_GAIN, v, 0.0, middle),
    )


@functools.cache
def _mix(matrix: int, full: bool) -> np.ndarray:
    """(3, 3): (u, v, 1) -> u, v and 128 + what is to be added to luma, as JPEG has them."""
    change = _to_yuv(*_JPEG) @ np.linalg.inv(_to_yuv(*_MATRICES[matrix]))
    result = np.zeros((3, 3))
    result[:, :2] = change[[1, 2, 0], 1:] * (1.0 if full else _CHROMA_GAIN)
    result[:, 2] = 128 - 128 * result[:, :2].sum(axis=1)
    return result


def _to_yuv(red: float, blue: float) -> np.ndarray:
    """(3, 3): RGB -> Y, Cb, Cr for the weights of red and blue in the luma."""
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack(
        [
            luma,
            (np.array([0, 0, 1]) - luma) / (2 * (1 - blue)),
            (np.array([1, 0, 0]) - luma) / (2 * (1 - red)),
        ]
    )
