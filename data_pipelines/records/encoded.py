"""The encoded images of a record: JPEG, or PNG where the pixels are to be exact.

Which of them an image is shows in its first bytes. Every reader of frames comes through here, so
what a header may claim is decided in one place.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np
import simplejpeg

_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">4x4sII")  # length and name of the first chunk, width, height
# An image of a record is a frame of a video or a photograph; Pillow's limit for images.
MAX_PIXELS = 178_956_970
# A PNG may say that it is to be turned; records hold images upright.
_READ = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def is_png(data: bytes) -> bool:
    """Whether an encoded image is a PNG."""
    return data.startswith(_PNG)


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) by the header.

    Raises:
      ValueError: the bytes are neither JPEG nor PNG, or the header claims more than MAX_PIXELS.
    """
    if is_png(data):
        if len(data) < len(_PNG) + _HEADER.size:
            raise ValueError(f"a PNG of {len(data)} bytes, cut in its header")
        kind, width, height = _HEADER.unpack_from(data, len(_PNG))
        if kind != b"IHDR" or not (width and height):
            raise ValueError("a PNG with a damaged header")
    else:
        height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"the header claims {width}x{height} pixels, at most {MAX_PIXELS} are read"
        )
    return height, width


def decode_frame(
    number: int, data: bytes, size: tuple[int, int], memory: np.ndarray | None = None
) -> np.ndarray:
    """The pixels of a frame of a record, as `decode` gives them.

    Raises:
      ValueError: it has not the size (H, W) of its record, by its header, so that nothing is
        allocated for it; or as `decode`. Names the frame.
    """
    try:
        found = size_of(data)
        if found == size:
            return decode(data, memory)
    except ValueError as error:
        raise ValueError(f"frame {number} is not a readable JPEG or PNG ({error})") from error
    raise ValueError(
        f"frame {number} is {found[1]}x{found[0]}, the record says {size[1]}x{size[0]}"
    )


def decode(data: bytes, memory: np.ndarray | None = None) -> np.ndarray:
    """The pixels (H, W, 3) uint8 RGB of an image.

    Args:
      memory: flat uint8 that is written into and returned as a view where it has H * W * 3 bytes.

    Raises:
      ValueError: as `size_of`, or the image is damaged.
    """
    height, width = size_of(data)
    if memory is not None and memory.size != height * width * 3:
        memory = None
    if is_png(data):
        return _decode_png(data, None if memory is None else memory.reshape(height, width, 3))
    return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=memory)


def _decode_png(data: bytes, out: np.ndarray | None) -> np.ndarray:
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), _READ)
    except cv2.error as error:
        raise ValueError(f"damaged PNG: {error.err}") from error
    if found is None:
        raise ValueError("damaged PNG")
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB, dst=found if out is None else out)


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG of (H, W, 3) uint8 RGB, without loss; equal bytes for one version of OpenCV."""
    good, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not good:
        raise RuntimeError(f"OpenCV cannot write {pixels.shape} as PNG")
    return data.tobytes()
