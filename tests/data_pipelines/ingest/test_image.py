"""Images as records of one frame."""

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_pipelines.ingest import sources
from data_pipelines.ingest.decode import DecodeOptions
from data_pipelines.ingest.estimate import estimate_bytes
from data_pipelines.ingest.image import read_image
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.rows import Row
from data_pipelines.tools.verify import verify
from tests.data_pipelines.ingest.clips import make_video, picture
from tests.data_pipelines.ingest.decoding import clip_of, stage_of
from tests.data_pipelines.ingest.test_annotate import BOX, lines, run, table

QUADRANTS = np.zeros((48, 64, 3), np.uint8)
QUADRANTS[:24, :32] = (255, 0, 0)
QUADRANTS[:24, 32:] = (0, 255, 0)
QUADRANTS[24:, :32] = (0, 0, 255)


def save(path, pixels=QUADRANTS, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def shown(path, **options) -> np.ndarray:
    clip = clip_of(path, media="image", quality=98, **options)
    assert clip.media_type == "image" and clip.timestamps_us == [0] and clip.notes == ()
    [frame] = clip.frames
    pixels = simplejpeg.decode_jpeg(frame)
    assert pixels.shape[:2] == (clip.height, clip.width)
    return pixels


def near(found, expected, levels=12) -> bool:
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < levels


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", None, {"quality": 95}),
        ("a.jpg", "CMYK", {"quality": 95}),
        ("a.jpeg", None, {"quality": 95, "progressive": True}),
        ("a.png", None, {}),
        ("a.png", "P", {}),
        ("a.png", "RGBA", {}),
        ("a.webp", None, {"quality": 95}),
        ("a.webp", "RGBA", {"lossless": True}),
    ],
)
def test_kinds_of_images(tmp_path, name, mode, options):
    assert near(shown(save(tmp_path / name, mode=mode, **options)), QUADRANTS)


def test_grey_and_sixteen_bits(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 48, axis=0)
    expected = np.repeat((ramp // 257).astype(np.uint8)[..., None], 3, axis=2)
    assert near(shown(save(tmp_path / "a.png", ramp)), expected, 2)
    grey = expected[..., 0]
    assert near(shown(save(tmp_path / "b.png", grey)), expected, 2)
    assert near(shown(save(tmp_path / "c.jpg", grey, quality=95)), expected, 2)
    assert near(shown(save(tmp_path / "d.png", grey > 127)), np.where(expected > 127, 255, 0))


def test_transparent_parts_are_white(tmp_path):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, 32:] = (200, 0, 0, 255)
    found = read_image(str(save(tmp_path / "a.png", pixels)))
    assert (found[:, :32] == 255).all() and (found[:, 32:] == (200, 0, 0)).all()
    palette = Image.fromarray(QUADRANTS).quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((63, 47)))  # the black part
    found = read_image(str(tmp_path / "p.png"))
    assert (found[24:, 32:] == 255).all() and (found[:24, :32] == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = QUADRANTS
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(stored), quality=95, exif=exif)
    assert near(shown(path), upright)
    clip = clip_of(path, media="image")
    assert (clip.source_height, clip.source_width) == (48, 64)


def test_size_is_that_of_videos(tmp_path):
    path = save(tmp_path / "a.png", picture(0, 301, 401))
    assert shown(path, short_side=256).shape == (256, 342, 3)
    assert shown(path, short_side=0).shape == (300, 400, 3)  # one odd line is cut off
    assert shown(save(tmp_path / "b.png", picture(0, 1, 1))).shape == (2, 2, 3)


def test_minimum_of_frames_is_about_videos(tmp_path):
    assert len(clip_of(save(tmp_path / "a.png"), media="auto", min_frames=16).frames) == 1


def test_auto_goes_by_the_suffix(tmp_path):
    assert clip_of(make_video(tmp_path / "a.mp4", 5), media="auto").media_type == "video"
    assert clip_of(save(tmp_path / "a.JPG", format="JPEG"), media="auto").media_type == "image"
    assert stage_of(save(tmp_path / "j.mp4", format="JPEG"), media="auto")[0] == "short"


def test_damaged_images_are_rejected_with_the_reason(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    jpeg = save(tmp_path / "good.jpg", picture(1, 200, 200)).read_bytes()
    png = save(tmp_path / "good.png", picture(1, 200, 200)).read_bytes()
    webp = save(tmp_path / "good.webp", picture(1, 200, 200)).read_bytes()
    for path, stage, text in (
        (write("zero.jpg", b""), "open", "the file is empty"),
        (tmp_path / "missing.jpg", "open", "No such file"),
        (write("page.png", b"<html>404</html>"), "open", "not a readable image"),
        (write("cut.jpg", jpeg[: len(jpeg) // 2]), "decode", "truncated"),
        (write("cut.png", png[: len(png) // 2]), "decode", "damaged image"),
        (write("cut.webp", webp[: len(webp) // 2]), "decode", "damaged image"),
        (write("noise.png", png[:60] + bytes(len(png) - 60)), "decode", "damaged image"),
        (make_video(tmp_path / "video.jpg", 5, container="mp4"), "open", "not a readable image"),
    ):
        found, message = stage_of(path, media="image")
        assert (found, text in message) == (stage, True), f"{path.name}: {found}: {message}"


def test_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    stage, message = stage_of(save(tmp_path / "a.png"), media="image")
    assert stage == "long" and "too large" in message


def test_image_with_times_is_a_mistake(tmp_path):
    stage, message = stage_of(save(tmp_path / "a.png"), 1.0, media="image")
    assert stage == "label" and "an image has no times" in message


def test_folder_lists_what_is_asked_for(tmp_path):
    for name in ("a.png", "b.JPEG", "c.webp"):
        save(tmp_path / name)
    (tmp_path / "v.mp4").touch()

    def names(media):
        listing = sources.read(IngestOptions(source=str(tmp_path), out="out", media=media))
        return [row.name for row in listing.rows], listing.notes

    assert names("image") == (
        ["a.png", "b.JPEG", "c.webp"],
        ["ignored 1 files that are not images (1 .mp4)"],
    )
    assert names("auto")[0] == ["a.png", "b.JPEG", "c.webp", "v.mp4"]
    assert names("video")[0] == ["v.mp4"]


def test_size_is_estimated_from_the_header(tmp_path):
    row = Row(str(save(tmp_path / "a.png", picture(0, 480, 640))), "a.png", "a", "train")
    found = estimate_bytes(row, DecodeOptions(media="image"))
    assert found == pytest.approx(256 * 342 * 0.192, rel=0.02)


def test_image_text_set_and_videos_in_one_ingest(tmp_path):
    save(tmp_path / "a.png")
    make_video(tmp_path / "v.mp4", 5)
    (tmp_path / "broken.webp").write_bytes(b"RIFF....WEBP")
    source = table(
        tmp_path / "t.jsonl",
        [
            {"path": "a.png", "caption": "four colours", "boxes": [{**BOX, "time": 0}]},
            {"path": "v.mp4", "caption": "a video"},
            {"path": "broken.webp", "caption": "nothing"},
        ],
    )
    report, records = run(source, tmp_path / "out", media="auto", shards=None)
    assert report.manifest.options["media"] == "auto"
    image, video = records["a.png"], records["v.mp4"]
    assert (image.media_type, video.media_type) == ("image", "video")
    assert image.captions == ("four colours",) and len(image.frames) == 1
    assert (image.start_us, image.end_us) == (0, 0) and image.boxes[0].time_us == 0
    [rejected] = lines(tmp_path / "out" / "rejected.jsonl")
    assert rejected["id"] == "broken.webp" and rejected["error"]
    assert verify(str(tmp_path / "out"), 0, quiet=True)[0] == []
