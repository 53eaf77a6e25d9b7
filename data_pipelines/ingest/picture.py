"""One decoded frame to one JPEG: display orientation, square pixels, size, colour.

A frame stays in YUV from decoder to encoder. swscale shrinks it, turns any matrix and range into
the one JPEG prescribes (BT.601, full range) and writes 4:2:0 planes, which the JPEG encoder
takes as they are. Through RGB and ``cv2.INTER_AREA`` the same frame costs 2 to 3 times as much
from 640x480 upwards, and swscale's fast YUV to RGB conversion is darker by one to two levels.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import simplejpeg
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

# swscale's SWS_ACCURATE_RND flag, which PyAV has a name for only from version 18. Without it the
# vertical scaler rounds differently on other kinds of CPU. It costs a tenth of a millisecond for a
# frame of 340x256, and changes nothing where the height stays.
_ACCURATE_ROUNDING = 1 << 18
# Aspect ratios of pixels beyond this are broken headers, not anamorphic video.
_MAX_PIXEL_ASPECT = 4


@dataclass(frozen=True, slots=True)
class Orientation:
    """How decoded pixels become the displayed picture: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, plane: np.ndarray) -> np.ndarray:
        """Reorder a plane (H, W)."""
        if self.transpose:
            plane = plane.T
        if self.mirror_x:
            plane = plane[:, ::-1]
        if self.mirror_y:
            plane = plane[::-1]
        return np.ascontiguousarray(plane)


# Quarter turns counterclockwise -> orientation.
_FROM_ROTATION = {
    1: Orientation(True, False, True),
    2: Orientation(False, True, True),
    3: Orientation(True, True, False),
}


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Read the display matrix of a frame, rounded to right angles.

    ``frame.rotation`` alone is not enough: of a mirrored matrix it reports a rotation by 180
    degrees, which would turn selfie videos upside down.
    """
    try:
        raw = bytes(frame.side_data["DISPLAYMATRIX"])  # type: ignore[typeddict-item]
    except KeyError:
        return Orientation()
    except ValueError:
        # PyAV met a kind of side data newer than itself and gives access to none.
        return _FROM_ROTATION.get(round(frame.rotation / 90) % 4, Orientation())
    # [a b u; c d v; x y w]: a source pixel (x, y) is displayed at (a x + c y, b x + d y).
    (a, b, _), (c, d, _) = np.frombuffer(raw, "<i4", count=9).reshape(3, 3)[:2].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def stored_size(
    width: int, height: int, pixel_aspect: Fraction, short_side: int
) -> tuple[int, int]:
    """(width, height) to store: square pixels, shorter side at most ``short_side``, even.

    Videos are never enlarged, since that costs bytes and adds nothing; only anamorphic pixels are
    stretched horizontally. ``short_side`` 0 keeps the size.
    """
    wide = width * pixel_aspect
    scale = min(Fraction(1), short_side / Fraction(min(wide, height))) if short_side else 1
    return max(2, 2 * round(wide * scale / 2)), max(2, 2 * round(height * scale / 2))


class FrameEncoder:
    """Encodes the frames of one video; the first frame decides orientation and size.

    A stream may change its resolution half way: later frames are brought to the size of the
    first, so that a record has one size.

    Args:
      pixel_aspect: sample aspect ratio of the stream, None or 0 when unknown.
      short_side: see :func:`stored_size`.
      quality: JPEG quality.

    Attributes (after the first frame):
      height, width: of the JPEGs.
      source_height, source_width: of the decoded picture as displayed, before resizing.
    """

    def __init__(self, pixel_aspect: Fraction | None, short_side: int, quality: int):
        aspect = Fraction(pixel_aspect or 1)
        sane = Fraction(1, _MAX_PIXEL_ASPECT) <= aspect <= _MAX_PIXEL_ASPECT
        self._aspect = aspect if sane else Fraction(1)
        self._short_side = short_side
        self._quality = quality
        self._reformatter = VideoReformatter()
        self._orientation: Orientation | None = None
        self._scaled = (0, 0)  # before cropping to even sizes and rotating
        self.height = self.width = self.source_height = self.source_width = 0

    def encode(self, frame: av.VideoFrame) -> bytes:
        """JPEG bytes of a frame.

        Raises:
          av.FFmpegError: the pixel format cannot be converted.
        """
        if self._orientation is None:
            self._orientation = orientation_of(frame)
            self._choose_size(frame.width, frame.height, self._orientation)
        image = self._to_jpeg_yuv(frame, *self._scaled)
        width, height = self._scaled[0] // 2, self._scaled[1] // 2
        y, u, v = (
            self._orientation.apply(_plane(plane, height * factor, width * factor))
            for plane, factor in zip(image.planes, (2, 1, 1), strict=True)
        )
        return simplejpeg.encode_jpeg_yuv_planes(y, u, v, self._quality)

    def _choose_size(self, width: int, height: int, orientation: Orientation) -> None:
        target = stored_size(width, height, self._aspect, self._short_side)
        # One odd row or column is cut off; rescaling for its sake would blur the whole picture.
        keep = (width > 1 and height > 1) and target == stored_size(width, height, Fraction(1), 0)
        self._scaled = (width, height) if keep else target
        stored = (self._scaled[0] // 2 * 2, self._scaled[1] // 2 * 2)
        turn = slice(None, None, -1 if orientation.transpose else 1)
        self.width, self.height = stored[turn]
        self.source_width, self.source_height = (width, height)[turn]

    def _to_jpeg_yuv(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        shrinks = width <= frame.width and height <= frame.height
        kind = Interpolation.AREA if shrinks else Interpolation.BICUBIC
        rounding = 0 if height == frame.height else _ACCURATE_ROUNDING
        settings: dict[str, Any] = {
            "width": width,
            "height": height,
            "format": "yuvj420p",
            "dst_colorspace": Colorspace.ITU601,
            "interpolation": int(kind) | rounding,
            # swscale's own threads double the CPU time; the processes use the cores already.
            "threads": 1,
        }
        try:
            return self._reformatter.reformat(frame, **settings)
        except OSError:
            # A matrix tag swscale does not know (reserved, ICtCp): show it as players do.
            return self._reformatter.reformat(frame, src_colorspace=Colorspace.ITU601, **settings)


def _plane(plane: Any, height: int, width: int) -> np.ndarray:
    """View of the leading (height, width) samples of a plane with padded lines."""
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[:height, :width]
