"""One frame to JPEG or PNG: orientation, square pixels, size, colour."""

from fractions import Fraction

import av
import numpy as np
import pytest
import simplejpeg
from av.video.reformatter import VideoReformatter

from data_pipelines.clips import transforms
from data_pipelines.ingest.encode import FrameEncoder, Orientation, orientation_of, stored_size
from data_pipelines.ingest.jpeg_colours import to_jpeg
from data_pipelines.records import encoded
from tests.data_pipelines.ingest.clips import make_video, picture


@pytest.mark.parametrize(
    ("size", "aspect", "short_side", "expected"),
    [
        ((1280, 720), 1, 256, (456, 256)),
        ((720, 1280), 1, 256, (256, 456)),
        ((340, 256), 1, 256, (340, 256)),
        ((340, 256), Fraction(1024, 765), 256, (456, 256)),  # anamorphic 16:9
        ((470, 320), Fraction(704, 705), 0, (470, 320)),
        ((320, 240), 1, 256, (320, 240)),  # never enlarged
        ((213, 121), 1, 0, (212, 120)),
        ((1, 1), 1, 256, (2, 2)),
        ((4000, 2), 1, 256, (4000, 2)),
        ((720, 576), Fraction(16, 15), 256, (342, 256)),
        ((100, 200), Fraction(1, 2), 40, (40, 160)),
    ],
)
def test_stored_size(size, aspect, short_side, expected):
    assert stored_size(*size, Fraction(aspect), short_side) == expected


def encode(image: np.ndarray, quality: int = 95, short_side: int = 0, aspect=None) -> np.ndarray:
    encoder = FrameEncoder(aspect, short_side, quality)
    data = encoder.encode(av.VideoFrame.from_ndarray(image))
    decoded = simplejpeg.decode_jpeg(data)
    assert decoded.shape == (encoder.height, encoder.width, 3)
    return decoded


def test_image_comes_back_nearly_unchanged():
    image = picture(3, 96, 128)
    assert np.abs(encode(image).astype(int) - image).mean() < 2.5


def test_odd_sizes_lose_a_line_and_are_not_rescaled():
    image = picture(0, 97, 129)
    decoded = encode(image)
    assert decoded.shape == (96, 128, 3)
    assert np.abs(decoded.astype(int) - image[:96, :128]).mean() < 2.5


def test_shrinking_averages_areas():
    """A checkerboard of single pixels must become grey, not moiré."""
    image = np.where(np.indices((512, 512)).sum(0)[..., None] % 2, 255, 0)
    decoded = encode(np.repeat(image, 3, 2).astype(np.uint8), short_side=256)
    assert decoded.shape == (256, 256, 3)
    assert abs(decoded[8:-8, 8:-8].mean() - 127.5) < 2 and decoded[8:-8, 8:-8].std() < 3


def test_anamorphic_pixels_are_stretched():
    decoded = encode(picture(0, 64, 64), aspect=Fraction(2))
    assert decoded.shape == (64, 128, 3)


@pytest.mark.parametrize("aspect", [None, Fraction(0), Fraction(1000), Fraction(1, 1000)])
def test_nonsense_aspect_ratios_are_ignored(aspect):
    assert encode(picture(0, 64, 64), aspect=aspect).shape == (64, 64, 3)


def yuv_frame(pix_fmt: str, y: int, u: int, v: int, shift: int = 0) -> av.VideoFrame:
    frame = av.VideoFrame(32, 32, pix_fmt)
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        kind = np.uint16 if shift else np.uint8
        plane.update(np.full(plane.buffer_size // kind().itemsize, value << shift, kind).tobytes())
    return frame


def rgb_of(y: int, u: int, v: int, kr: float, kb: float, full: bool) -> np.ndarray:
    """Textbook conversion of one limited or full range YUV value."""
    luma = y if full else (y - 16) * 255 / 219
    cb, cr = ((c - 128) * (1 if full else 255 / 224) for c in (u, v))
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    return np.array([red, (luma - kr * red - kb * blue) / (1 - kr - kb), blue])


BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)


COLOURS = ("pix_fmt", "color_range", "colorspace", "matrix", "full")
COMMON = (
    ("yuv420p", 0, 2, BT601, False),  # untagged: as players treat it
    ("yuv420p", 1, 1, BT709, False),
    ("yuv420p", 2, 1, BT709, True),
    ("yuv420p", 1, 9, BT2020, False),
    ("yuvj420p", 2, 2, BT601, True),
    ("yuv444p", 1, 1, BT709, False),
    ("yuv422p", 0, 2, BT601, False),
    ("yuv420p10le", 1, 2, BT601, False),
)


@pytest.mark.parametrize(
    COLOURS,
    [
        *COMMON,
        ("yuv420p", 2, 5, BT601, True),
        ("yuv420p", 1, 3, BT601, False),  # reserved matrix number
        ("yuv420p", 1, 14, BT601, False),  # ICtCp, which swscale does not know
    ],
)
def test_ranges_and_matrices_end_in_the_right_colours(
    pix_fmt, color_range, colorspace, matrix, full
):
    frame = yuv_frame(pix_fmt, 120, 90, 170, shift=2 if "10" in pix_fmt else 0)
    frame.color_range, frame.colorspace = color_range, colorspace
    decoded = simplejpeg.decode_jpeg(FrameEncoder(None, 0, 98).encode(frame))
    expected = rgb_of(120, 90, 170, *matrix, full)
    assert np.abs(decoded[16, 16] - expected).max() <= 3


def coloured_frame(pix_fmt: str, color_range: int, colorspace: int) -> av.VideoFrame:
    """64x96 in many colours that no conversion has to clip."""
    rng = np.random.default_rng(0)
    frame = av.VideoFrame(96, 64, pix_fmt)
    for number, plane in enumerate(frame.planes):
        low, high = (80, 170) if number == 0 else (100, 156)
        levels = rng.integers(low, high, (plane.height, plane.line_size), np.uint16)
        kind = np.uint16 if "10" in pix_fmt else np.uint8
        shift = 2 if "10" in pix_fmt else 0
        plane.update((levels[:, : plane.line_size // kind().itemsize] << shift).astype(kind))
    frame.color_range, frame.colorspace = color_range, colorspace
    return frame


def mean_rgb(frame: av.VideoFrame, matrix, full: bool) -> np.ndarray:
    shift = 2 if "10" in frame.format.name else 0
    kind = np.uint16 if shift else np.uint8
    means = []
    for plane in frame.planes:
        lines = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]
        means.append(lines.mean() / 2**shift)
    return rgb_of(*means, *matrix, full)


def test_every_level_of_limited_range_is_rounded_to_the_nearest():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    before = levels.astype(float)
    luma, *chroma = to_jpeg((levels, levels, levels), 2, False)
    assert np.array_equal(luma, np.clip(np.rint((before - 16) * 255 / 219), 0, 255))
    for plane in chroma:
        assert np.array_equal(plane, np.clip(np.rint((before - 128) * 255 / 224 + 128), 0, 255))


@pytest.mark.parametrize("size", [0, 40], ids=["same size", "shrunk"])
@pytest.mark.parametrize(COLOURS, [*COMMON, ("yuv444p", 2, 5, BT601, True)])
def test_no_colour_is_brighter_or_darker_on_the_whole(
    pix_fmt, color_range, colorspace, matrix, full, size
):
    """swscale's conversion of the range alone makes +0.5 green, -0.9 blue; of BT.709 -1.7 red."""
    frame = coloured_frame(pix_fmt, color_range, colorspace)
    decoded = simplejpeg.decode_jpeg(FrameEncoder(None, size, 100).encode(frame))
    bias = decoded.mean(axis=(0, 1)) - mean_rgb(frame, matrix, full)
    # The mean of two lines of chroma is a half as often as not, and swscale rounds halves up.
    assert np.abs(bias).max() < (0.5 if pix_fmt == "yuv422p" else 0.3)


@pytest.mark.parametrize("pix_fmt", ["rgb24", "gbrp", "bgr0"])
@pytest.mark.parametrize("size", [0, 40], ids=["same size", "shrunk"])
def test_images_in_rgb_keep_their_mean_colour(pix_fmt, size):
    image = np.random.default_rng(0).integers(60, 200, (64, 96, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
    decoded = simplejpeg.decode_jpeg(FrameEncoder(None, size, 100).encode(frame))
    assert np.abs(decoded.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 0.3


@pytest.mark.parametrize(("y", "expected"), [(16, 0), (235, 255), (126, 128)])
def test_limited_range_is_stretched_to_full(y, expected):
    decoded = simplejpeg.decode_jpeg(
        FrameEncoder(None, 0, 98).encode(yuv_frame("yuv420p", y, 128, 128))
    )
    assert np.abs(decoded.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("pix_fmt", ["gray", "bgr24", "rgba", "yuva420p", "gbrp", "nv12"])
def test_other_pixel_formats(pix_fmt):
    image = picture(3, 96, 128)
    frame = av.VideoFrame.from_ndarray(image).reformat(format=pix_fmt)
    decoded = simplejpeg.decode_jpeg(FrameEncoder(None, 0, 95).encode(frame)).astype(int)
    luma = image @ np.array([0.299, 0.587, 0.114])
    expected = luma[..., None] if pix_fmt == "gray" else image
    assert np.abs(decoded - expected).mean() < 3


def test_later_frames_of_another_size_are_brought_to_the_first():
    encoder = FrameEncoder(None, 0, 90)
    for height, width in ((48, 64), (96, 128), (30, 30)):
        data = encoder.encode(av.VideoFrame.from_ndarray(picture(0, height, width)))
        assert simplejpeg.decode_jpeg_header(data)[:2] == (48, 64)
    assert (encoder.source_height, encoder.source_width) == (48, 64)


CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32] = (255, 0, 0)
CORNERS[:24, 32:] = (0, 255, 0)
CORNERS[24:, :32] = (0, 0, 255)


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True)])
def test_display_rotation_and_mirroring(tmp_path, degrees, mirror):
    path = make_video(tmp_path / "r.mp4", 2, rotation=(degrees, *mirror), images=[CORNERS, CORNERS])
    expected = np.rot90(CORNERS, degrees // 90)
    if mirror[0]:
        expected = expected[:, ::-1]
    if mirror[1]:
        expected = expected[::-1]
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        encoder = FrameEncoder(None, 0, 95)
        decoded = simplejpeg.decode_jpeg(encoder.encode(frame))
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).mean() < 12
    assert (encoder.source_height, encoder.source_width) == expected.shape[:2]


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_is_used_when_the_side_data_cannot_be_read(tmp_path, degrees):
    path = make_video(tmp_path / "r.mp4", 1, rotation=(degrees, False, False))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))

    class Frame:
        rotation = frame.rotation

        @property
        def side_data(self):
            raise ValueError("999 is not a valid Type")

    assert orientation_of(Frame()) == orientation_of(frame)


def test_rotated_odd_size_is_cut_before_it_is_turned():
    encoder = FrameEncoder(None, 0, 90)
    encoder._orientation = Orientation(transpose=True, mirror_x=True)
    encoder._choose_size(65, 48, encoder._orientation)
    data = encoder.encode(av.VideoFrame.from_ndarray(picture(0, 48, 65)))
    assert simplejpeg.decode_jpeg_header(data)[:2] == (64, 48)
    assert (encoder.height, encoder.width) == (64, 48)
    assert (encoder.source_height, encoder.source_width) == (65, 48)


def test_frame_without_display_matrix_is_upright():
    assert orientation_of(av.VideoFrame(16, 16, "yuv420p")) == Orientation()


@pytest.mark.parametrize("size", [(96, 64), (97, 65), (65, 97), (1, 1)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv422p", "rgb24", "gray"])
def test_png_holds_the_decoded_pixels(pix_fmt, size):
    """Those of decord, which are those of swscale's default conversion (compared by hand)."""
    image = picture(3, size[1], size[0])
    frame = av.VideoFrame.from_ndarray(image).reformat(format=pix_fmt)
    frame.colorspace = 1
    encoder = FrameEncoder(None, 0, 90, "png")
    found = encoded.decode(encoder.encode(frame))
    assert np.array_equal(found, frame.to_ndarray(format="rgb24"))
    assert (encoder.width, encoder.height) == size


@pytest.mark.parametrize("storage", ["jpeg", "png"])
@pytest.mark.parametrize(
    ("size", "aspect"),
    [
        ((160, 90), None),
        ((90, 161), None),
        ((129, 97), None),
        ((85, 64), Fraction(1024, 765)),
        ((90, 72), Fraction(16, 15)),
        ((90, 72), Fraction(64, 45)),
    ],
)
def test_what_was_shrunk_to_the_size_of_the_model_is_not_resized_again(size, aspect, storage):
    encoder = FrameEncoder(aspect, 48, 90, storage)
    data = encoder.encode(av.VideoFrame.from_ndarray(picture(3, size[1], size[0])))
    frame = encoded.decode(data)
    assert min(frame.shape[:2]) == 48
    assert transforms.resize_short_side(frame, 48) is frame


def test_every_frame_is_resized_once(monkeypatch):
    """Shrinking, stretching and the change of the matrix are one pass of the scaler."""
    sizes = []
    original = VideoReformatter.reformat

    class Counting:
        def __init__(self):
            self._inner = VideoReformatter()

        def reformat(self, frame, **settings):
            sizes.append((settings["width"], settings["height"], settings["format"]))
            return original(self._inner, frame, **settings)

    monkeypatch.setattr("data_pipelines.ingest.encode.VideoReformatter", Counting)
    encoder = FrameEncoder(Fraction(1024, 765), 64, 90)
    encoder.encode(coloured_frame("yuv420p", 1, 1))
    FrameEncoder(None, 0, 90).encode(coloured_frame("yuv420p", 1, 1))  # this one not at all
    assert sizes == [(encoder.width, encoder.height, "yuv420p")]


def test_png_that_is_turned_and_shrunk():
    encoder = FrameEncoder(None, 32, 90, "png")
    encoder._orientation = Orientation(transpose=True, mirror_x=True)
    encoder._choose_size(96, 65, encoder._orientation)
    frame = av.VideoFrame.from_ndarray(picture(3, 65, 96))
    small = transforms.resize(frame.to_ndarray(), 32, 47, "area")
    assert np.array_equal(encoded.decode(encoder.encode(frame)), np.rot90(small, -1))
    assert (encoder.height, encoder.width) == (47, 32)
