"""Encoded images: which they are, their size, their pixels, and what is refused."""

import struct

import cv2
import numpy as np
import pytest
import simplejpeg

from data_pipelines.records import encoded

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)
PNG = encoded.encode_png(PIXELS)
JPEG = simplejpeg.encode_jpeg(PIXELS, 90)


def test_png_keeps_every_pixel_also_of_odd_sizes():
    assert encoded.is_png(PNG) and not encoded.is_png(JPEG)
    assert encoded.size_of(PNG) == encoded.size_of(JPEG) == (37, 51)
    assert np.array_equal(encoded.decode(PNG), PIXELS)
    assert np.array_equal(encoded.decode(JPEG), simplejpeg.decode_jpeg(JPEG))


@pytest.mark.parametrize("data", [PNG, JPEG], ids=["png", "jpeg"])
def test_memory_of_the_right_size_is_used_and_other_is_not(data):
    memory = np.zeros(PIXELS.size, np.uint8)
    found = encoded.decode(data, memory)
    assert np.shares_memory(found, memory) and np.array_equal(found, encoded.decode(data))
    other = np.zeros(PIXELS.size - 3, np.uint8)
    assert np.array_equal(encoded.decode(data, other), found) and not other.any()


@pytest.mark.parametrize("kind", ["grey", "alpha", "16 bits", "turned"])
def test_png_of_others_becomes_rgb(kind):
    bgr = np.ascontiguousarray(PIXELS[..., ::-1])
    image = {
        "grey": bgr[..., 0],
        "alpha": np.concatenate([bgr, np.full((37, 51, 1), 7, np.uint8)], axis=2),
        "16 bits": bgr.astype(np.uint16) * 257,
        "turned": bgr,
    }[kind]
    data = cv2.imencode(".png", image)[1].tobytes()
    if kind == "turned":  # Exif, orientation 6: to be shown turned by 90 degrees
        exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        chunk = b"eXIf" + exif
        crc = struct.pack(">I", __import__("zlib").crc32(chunk))
        data = data[:33] + struct.pack(">I", len(exif)) + chunk + crc + data[33:]
    expected = np.repeat(bgr[..., :1], 3, axis=2) if kind == "grey" else PIXELS
    assert np.array_equal(encoded.decode(data), expected)


def claiming(width: int, height: int) -> bytes:
    return PNG[:16] + struct.pack(">II", width, height) + PNG[24:]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (PNG[:20], "cut in its header"),
        (PNG[:12] + b"XXXX" + PNG[16:], "damaged header"),
        (claiming(0, 5), "damaged header"),
        (claiming(65500, 65500), "claims 65500x65500 pixels"),
        (claiming(51, 38), "damaged PNG"),
        (PNG[:-30], "damaged PNG"),
        (PNG[:100] + bytes([PNG[100] ^ 1]) + PNG[101:], "damaged PNG"),
        (b"", "."),
        (b"text", "."),
        (JPEG[:40], "."),
    ],
)
def test_damage_and_bombs_are_refused(data, complaint):
    with pytest.raises(ValueError, match=complaint):
        encoded.decode(data)
