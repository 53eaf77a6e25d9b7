"""One decoded frame to one encoded image: display orientation, pixel aspect, size, colour.

For JPEG a frame of a video stays in YUV from decoder to encoder. swscale shrinks it, once, and
writes 4:2:0 planes; `.jpeg_colours` turns any matrix and range into the one JPEG prescribes,
and the JPEG encoder takes the planes as they are. Through RGB and `cv2.INTER_AREA` the same frame
costs 2 to 3 times as much from 640x480 upwards.

For PNG it becomes RGB by swscale's default conversion, which is that of decord and of PyAV's
`to_ndarray`, level for level (and one to one and a half levels darker than the colours meant).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import simplejpeg
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from data_pipelines.clips import transforms
from data_pipelines.ingest.jpeg_colours import Planes, to_jpeg
from data_pipelines.records import encoded

# swscale's SWS_ACCURATE_RND flag, which PyAV has a name for only from version 18. Without it the
# vertical scaler rounds differently on other kinds of CPU. It costs a tenth of a millisecond for a
# frame of 340x256, and changes nothing where the height stays.
_ACCURATE_ROUNDING = 1 << 18
# Aspect ratios of pixels beyond this are broken headers, not anamorphic video.
_MAX_PIXEL_ASPECT = 4
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_PLANES = ("yuv420p", "yuvj420p")  # what the JPEG encoder takes


@dataclass(frozen=True, slots=True)
class Orientation:
    """How decoded pixels become the displayed image: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, plane: np.ndarray) -> np.ndarray:
        """Reorder a plane (H, W), or an image (H, W, 3)."""
        if self.transpose:
            plane = plane.swapaxes(0, 1)
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

    `frame.rotation` alone is not enough: of a mirrored matrix it reports a rotation by 180
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
    width: int, height: int, pixel_aspect: Fraction, short_side: int, *, even: bool = True
) -> tuple[int, int]:
    """(width, height) to store: shorter side at most `short_side`, even as JPEG's 4:2:0 wants it.

    Videos are never enlarged, since that costs bytes and adds nothing; only anamorphic pixels are
    stretched horizontally. `short_side` 0 keeps the size.
    """
    wide = width * pixel_aspect
    scale = min(Fraction(1), short_side / Fraction(min(wide, height))) if short_side else 1
    step = 2 if even else 1
    wanted = (step * round(side * scale / step) for side in (wide, height))
    return max(step, next(wanted)), max(step, next(wanted))


class FrameEncoder:
    """Encodes the frames of one video; the first frame decides orientation and size.

    A stream may change its resolution half way: later frames are brought to the size of the
    first, so that a record has one size.

    Args:
      pixel_aspect: of the pixels to be made square; None or 0 keeps them as they are stored.
      short_side: see `stored_size`.
      quality: JPEG quality.
      storage: `jpeg`, or `png` for the decoded pixels without loss, odd sizes included.

    Attributes (after the first frame):
      height, width: of the encoded images.
      source_height, source_width: of the decoded image as displayed, before resizing.
    """

    def __init__(
        self, pixel_aspect: Fraction | None, short_side: int, quality: int, storage: str = "jpeg"
    ):
        aspect = Fraction(pixel_aspect or 1)
        sane = Fraction(1, _MAX_PIXEL_ASPECT) <= aspect <= _MAX_PIXEL_ASPECT
        self._aspect = aspect if sane else Fraction(1)
        self._short_side = short_side
        self._quality = quality
        self._exact = storage == "png"
        self._reformatter = VideoReformatter()
        self._orientation: Orientation | None = None
        self._scaled = (0, 0)  # before cropping to even sizes and rotating
        self._stored = (0, 0)  # before rotating
        self.height = self.width = self.source_height = self.source_width = 0

    def encode(self, frame: av.VideoFrame) -> bytes:
        """The bytes of a frame's image.

        Raises:
          av.FFmpegError: the pixel format cannot be converted.
        """
        if self._orientation is None:
            self._orientation = orientation_of(frame)
            self._choose_size(frame.width, frame.height, self._orientation)
        if self._exact:
            return encoded.encode_png(self._orientation.apply(self._rgb(frame)))
        if not _is_yuv(frame.format):
            pixels = self._orientation.apply(self._rgb(frame))
            return simplejpeg.encode_jpeg(pixels, self._quality, "RGB", "420")
        y, u, v = (self._orientation.apply(plane) for plane in self._yuv(frame))
        return simplejpeg.encode_jpeg_yuv_planes(y, u, v, self._quality)

    def _choose_size(self, width: int, height: int, orientation: Orientation) -> None:
        even = not self._exact
        target = stored_size(width, height, self._aspect, self._short_side, even=even)
        # One odd row or column is cut off; rescaling for its sake would blur the whole image.
        uncut = stored_size(width, height, Fraction(1), 0, even=even)
        keep = width > 1 and height > 1 and target == uncut
        self._scaled = (width, height) if keep else target
        step = 2 if even else 1
        self._stored = (self._scaled[0] // step * step, self._scaled[1] // step * step)
        turn = slice(None, None, -1 if orientation.transpose else 1)
        self.width, self.height = self._stored[turn]
        self.source_width, self.source_height = (width, height)[turn]

    def _yuv(self, frame: av.VideoFrame) -> Planes:
        """The planes to encode, not yet turned."""
        full = frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
        image = self._resized(frame, "yuvj420p" if full else "yuv420p")
        width, height = self._stored[0] // 2, self._stored[1] // 2
        y, u, v = (
            _plane(plane, height * factor, width * factor)
            for plane, factor in zip(image.planes, (2, 1, 1), strict=True)
        )
        return to_jpeg((y, u, v), int(frame.colorspace), full)

    def _resized(self, frame: av.VideoFrame, name: str) -> av.VideoFrame:
        """The frame in its own matrix and range, as 8-bit 4:2:0 planes of the size to store."""
        width, height = self._scaled
        if (frame.width, frame.height) == (width, height) and frame.format.name in _PLANES:
            return frame
        shrinks = width <= frame.width and height <= frame.height
        kind = Interpolation.AREA if shrinks else Interpolation.BICUBIC
        rounding = 0 if height == frame.height else _ACCURATE_ROUNDING
        return self._reformat(
            frame, width=width, height=height, format=name, interpolation=int(kind) | rounding
        )

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """The pixels (H, W, 3) to encode, not yet turned."""
        pixels = self._reformat(frame, format="rgb24").to_ndarray()
        width, height = self._scaled
        if pixels.shape[:2] != (height, width):
            pixels = transforms.resize(pixels, height, width, "area")
        return pixels[: self._stored[1], : self._stored[0]]

    def _reformat(self, frame: av.VideoFrame, **settings: Any) -> av.VideoFrame:
        # swscale's own threads double the CPU time; the processes use the cores already.
        settings["threads"] = 1
        try:
            return self._reformatter.reformat(frame, **settings)
        except OSError:
            # A matrix tag swscale does not know (reserved, ICtCp): show it as players do.
            matrix = Colorspace.ITU601
            return self._reformatter.reformat(
                frame, src_colorspace=matrix, dst_colorspace=matrix, **settings
            )


def _is_yuv(pixel_format: av.VideoFormat) -> bool:
    """Whether it has luma and two chromas; not grey, a palette, XYZ or RGB."""
    colours = [part for part in pixel_format.components if not part.is_alpha]
    return len(colours) == 3 and not pixel_format.is_rgb and "xyz" not in pixel_format.name


def _plane(plane: Any, height: int, width: int) -> np.ndarray:
    """View of the leading (height, width) samples of a plane with padded lines."""
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[:height, :width]
