"""Folders of frames: what is stored as it is, what is encoded, and what is missing."""

import cv2
import numpy as np
import pytest
import simplejpeg

from data_pipelines.ingest import media, plan
from data_pipelines.ingest.container import VideoError
from data_pipelines.ingest.decode import DecodeOptions
from data_pipelines.ingest.frames import FrameFolder
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.records import manifest, schema
from tests.data_pipelines.ingest.clips import picture


def jpeg(i: int, height: int = 48, width: int = 64, sampling: str = "420") -> bytes:
    return simplejpeg.encode_jpeg(picture(i, height, width), 90, colorsubsampling=sampling)


@pytest.fixture
def folder(tmp_path):
    """Writes frames 1, 2, ... and gives the clip."""
    root = tmp_path / "x"

    def load(images: list[bytes | None], name="img_{:05d}.jpg", start=None, end=None, **options):
        root.mkdir(exist_ok=True)
        for i, data in enumerate(images, start=1):
            if data is not None:
                (root / name.format(i)).write_bytes(data)
        source = FrameFolder(str(root), name, 1, len(images), 10.0)
        return media.load_clip(source.address(), DecodeOptions(**options), start, end)

    return load


def colours(frames) -> list[int]:
    """The numbers drawn into the top left corner by ``picture``."""
    corners = [simplejpeg.decode_jpeg(f)[:10, :14].astype(float).mean() for f in frames]
    return [round((corner - 40) / 4) for corner in corners]


def test_frames_that_fit_are_stored_byte_for_byte(folder):
    images = [jpeg(i) for i in range(5)]
    clip = folder(images)
    assert clip.frames == images
    assert clip.timestamps_us == [0, 100_000, 200_000, 300_000, 400_000]
    assert (clip.fps, clip.start_us, clip.end_us, clip.notes) == (10.0, 0, 500_000, ())
    assert (clip.height, clip.width, clip.source_height, clip.source_width) == (48, 64, 48, 64)


def png(i: int, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, picture(i)[..., ::-1])[1].tobytes()


@pytest.mark.parametrize(
    "encode",
    [
        png,
        lambda i: png(i, ".bmp"),
        lambda i: jpeg(i, sampling="444"),
        lambda i: jpeg(i, 49, 65),
        lambda i: jpeg(i, 96, 128),
    ],
    ids=["png", "bmp", "444", "odd", "large"],
)
def test_other_frames_are_encoded(folder, encode):
    clip = folder([encode(i) for i in range(4)], short_side=48)
    assert (clip.height, clip.width) == (48, 64) and colours(clip.frames) == [0, 1, 2, 3]
    for frame in clip.frames:
        assert simplejpeg.decode_jpeg_header(frame)[:2] == (48, 64)
        assert simplejpeg.decode_jpeg_header(frame)[3] == "420"


def test_colours_survive_encoding(folder):
    clip = folder([png(3), png(4)], quality=95)
    got = simplejpeg.decode_jpeg(clip.frames[0]).astype(int)
    assert np.abs(got - picture(3)).mean() < 2


def test_exif_rotation_is_applied(folder):
    exif = bytes.fromhex("4578696600004d4d002a000000080001011200030000000100060000" + "00000000")
    turned = [
        data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
        for data in map(jpeg, range(2))
    ]
    clip = folder(turned)
    assert (clip.height, clip.width) == (64, 48)


def test_all_frames_of_a_record_have_the_size_of_the_first(folder):
    clip = folder([jpeg(0), jpeg(1, 96, 128), png(2), jpeg(3)])
    assert [simplejpeg.decode_jpeg_header(f)[:2] for f in clip.frames] == [(48, 64)] * 4
    assert clip.frames[0] == jpeg(0) and clip.frames[3] == jpeg(3)
    assert colours(clip.frames) == [0, 1, 2, 3]


def test_times_and_rates(folder):
    images = [jpeg(i) for i in range(10)]
    clip = folder(images, start=0.2, end=0.5)
    assert clip.frames == images[2:5] and (clip.start_us, clip.end_us) == (200_000, 500_000)
    clip = folder(images, fps=5.0, max_seconds=0.6)
    assert clip.frames == images[:6:2] and clip.fps == 5.0


def test_missing_and_torn_frames_make_the_clip_partial(folder):
    images = [jpeg(0), None, jpeg(2), jpeg(3)[:-200], b"", png(5)[:60]]
    clip = folder(images)
    assert clip.frames == [jpeg(0), jpeg(2)] and clip.timestamps_us == [0, 200_000]
    [note] = clip.notes
    assert note.kind == "partial" and note.detail.startswith("2 of 6 frames: img_00002.jpg: ")
    with pytest.raises(VideoError, match="4 frames cannot be read"):
        folder(images, partial="reject")


@pytest.mark.parametrize("sampling", ["420", "444"])
def test_frames_damaged_in_the_middle_are_left_out(folder, sampling):
    """Most decoders show grey for what they cannot read, and give no error."""
    data = bytearray(jpeg(1, sampling=sampling))
    data[-150:-148] = b"\xff\xd9"  # the end, much too early
    clip = folder([jpeg(0), bytes(data), jpeg(2), jpeg(3)])
    assert colours(clip.frames) == [0, 2, 3]
    assert [note.kind for note in clip.notes] == ["partial"]


def test_transparent_frames_lie_on_white(folder):
    """As images that are records of their own: there is one way to read an image file."""
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, 32:] = (0, 0, 200, 255)  # BGRA
    clip = folder([cv2.imencode(".png", pixels)[1].tobytes()] * 2)
    shown = simplejpeg.decode_jpeg(clip.frames[0]).astype(int)
    assert shown[:, :24].min() > 250
    assert np.abs(shown[:, 40:] - (200, 0, 0)).max() < 8


def test_audio_that_cannot_be_had_is_counted(folder):
    clip = folder([jpeg(0), jpeg(1)], audio="pcm16")
    assert clip.audio is None and [note.kind for note in clip.notes] == ["silent"]


@pytest.mark.parametrize(
    ("images", "stage", "complaint"),
    [
        ([None, None], "open", r"has no img_00001\.jpg; --frame-template.*found nothing, none of"),
        ([None, jpeg(1)], "short", "1 frames, at least 2"),
        ([jpeg(0)], "short", "1 frames, at least 2"),
        ([], "short", "no frame from 0 s"),
        ([b"<html>", b"GIF89a"], "decode", "none of its frames can be read: img_00001.jpg"),
    ],
)
def test_folders_without_a_clip(folder, images, stage, complaint):
    with pytest.raises(VideoError, match=complaint) as caught:
        folder(images)
    assert caught.value.stage == stage


@pytest.mark.parametrize("missing", [(1,), (1, 2), (1, 4, 9)])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_folder_without_its_first_frames_is_partial(folder, missing, suffix):
    encode = jpeg if suffix == ".jpg" else png
    images = [None if i + 1 in missing else encode(i) for i in range(10)]
    kept = [i for i, data in enumerate(images) if data is not None]
    clip = folder(images, name="img_{:05d}" + suffix)
    assert colours(clip.frames) == kept and clip.timestamps_us == [100_000 * i for i in kept]
    [note] = clip.notes
    assert note.kind == "partial"
    assert note.detail.startswith(f"{len(kept)} of 10 frames: img_00001{suffix}: ")
    assert "--frame-start" not in note.detail
    with pytest.raises(VideoError, match=f"{len(missing)} frames cannot be read"):
        folder(images, name="img_{:05d}" + suffix, partial="reject")


@pytest.mark.parametrize(("there", "start"), [(range(5), 0), (range(2, 7), 2)])
def test_a_folder_numbered_otherwise_says_so(tmp_path, there, start):
    for i in there:
        (tmp_path / f"img_{i:05d}.jpg").write_bytes(jpeg(i))
    source = FrameFolder(str(tmp_path), "img_{:05d}.jpg", 1, 5, 10.0)
    clip = media.load_clip(source.address(), DecodeOptions())
    assert len(clip.frames) == 4
    assert f"are they numbered from {start} (--frame-start {start})?" in clip.notes[0].detail
    good = FrameFolder(str(tmp_path), "img_{:05d}.jpg", start, 5, 10.0)
    assert media.load_clip(good.address(), DecodeOptions()).notes == ()


def test_no_such_folder(tmp_path):
    source = FrameFolder(str(tmp_path / "nowhere"), "{:d}.jpg", 1, 3, 10.0)
    with pytest.raises(VideoError, match="no such folder") as caught:
        media.load_clip(source.address(), DecodeOptions())
    assert caught.value.stage == "open"


@pytest.fixture
def dataset(tmp_path):
    """A list of two good folders, a short one, a missing one and an unknown label."""
    for name, count in (("a ü", 6), ("b", 4), ("c", 1), ("e", 4)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"img_{i + 1:05d}.jpg").write_bytes(jpeg(i))
    path = tmp_path / "val.csv"
    path.write_text("a ü 6 1\nb 5 0\nc 1 1\nd 4 0\ne 4 7\n")
    (tmp_path / "classes.txt").write_text("sit\nrun\n")
    return path


def run(source, out, **changes):
    options = {"workers": 0, "shards": 2, "frame_fps": 12.0, **changes}
    return ingest(IngestOptions(source=str(source), out=str(out), **options), quiet=True)


def test_list_to_records(dataset, tmp_path):
    out = tmp_path / "out"
    report = run(dataset, out, classes_file=str(tmp_path / "classes.txt"))
    assert report.rejected == {"short": 1, "open": 1, "label": 1}
    assert report.warnings == {"partial": 1}
    _, source = manifest.open_split(out, "val")
    records = {record.media_id: record for record in map(schema.decode, source)}
    assert set(records) == {"a ü", "b"}
    assert list(records["a ü"].frames) == [jpeg(i) for i in range(6)]
    assert records["a ü"].label_names == ("run",) and records["a ü"].fps == 12.0
    assert len(records["b"].frames) == 4


def test_bytes_do_not_depend_on_the_workers(dataset, tmp_path):
    for workers in (0, 2):
        run(dataset, tmp_path / str(workers), workers=workers)
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir() if p.suffix != ".lock"}
        for n in ("0", "2")
    )
    assert first == second


@pytest.mark.parametrize(
    "changes", [{"frame_fps": 24.0}, {"frame_start": 2}, {"frame_template": "img_{:05}.jpg"}]
)
def test_other_frames_are_another_ingest(dataset, tmp_path, changes):
    out = tmp_path / "out"
    run(dataset, out)
    with pytest.raises(ValueError, match="was begun with other options"):
        run(dataset, out, **changes)


def test_a_folder_without_its_first_frame_in_a_list(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(2, 21):
        (tmp_path / "a" / f"img_{i:05d}.jpg").write_bytes(jpeg(i))
    (tmp_path / "list.txt").write_text("a 20 0\n")
    report = run(tmp_path / "list.txt", tmp_path / "out", shards=None)
    assert not report.rejected and report.warnings == {"partial": 1}
    _, source = manifest.open_split(tmp_path / "out", "train")
    record = schema.decode(source[0])
    assert list(record.timestamps_us[:2]) == [83_333, 166_667] and len(record.frames) == 19


def test_shard_size_is_estimated_from_the_frames(dataset, tmp_path):
    run(dataset, tmp_path / "out", shards=None, shard_mb=0.005)
    assert 1 < plan._read(tmp_path / "out" / plan.FILE_NAME).shards["val"] <= 5
