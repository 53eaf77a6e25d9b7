"""Image files: which ones there are, and how one becomes the pixels that were meant."""

import contextlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from data_pipelines.ingest.container import VideoError, check_file

IMAGE_SUFFIXES = frozenset((".jpeg", ".jpg", ".png", ".webp"))

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def is_image(path: str, media: str) -> bool:
    """Whether a file is to be read as an image; `media` as in the ingest's options."""
    if media == "auto":
        return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
    return media == "image"


def read_image(path: str) -> np.ndarray:
    """The pixels (H, W, 3) uint8 RGB of an image as it is shown.

    The EXIF orientation is applied, transparent parts lie on white, 16 bits are scaled to 8, and
    of an animation the first frame is taken.

    Raises:
      VideoError: stage `open` for a file that is no image, `decode` for a damaged one,
        `long` for one too large to be honest.
    """
    check_file(path)
    with _opened(path) as image:
        return _pixels(image)


def decode_image(data: bytes) -> np.ndarray:
    """As `read_image`, of the content of a file."""
    with _opened(io.BytesIO(data)) as image:
        return _pixels(image)


def image_size(path: str) -> tuple[int, int]:
    """(width, height) by the header; errors as in `read_image`."""
    check_file(path)
    with _opened(path) as image:
        return image.size


@contextlib.contextmanager
def _opened(file: str | io.BytesIO) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Pillow's first size limit warns, its second, twice as high, raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                yield image
    except Image.UnidentifiedImageError as error:
        raise VideoError("open", "not a readable image (JPEG, PNG, WebP or BMP)") from error
    except Image.DecompressionBombError as error:
        raise VideoError("long", f"the image is too large: {error}") from error
    except (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
        raise VideoError("decode", f"damaged image: {error}") from error
    except (struct.error, zlib.error, TypeError) as error:
        raise VideoError("decode", f"damaged image: {type(error).__name__}: {error}") from error


def _pixels(image: Image.Image) -> np.ndarray:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 8 bits
        grey = np.clip(np.asarray(image).astype(np.int64) // 257, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
