"""Times of files that count frames twice, set their clock anew or have a wrong stamp."""

import json
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data_pipelines.ingest.__main__ import main
from data_pipelines.records import manifest, schema
from tests.data_pipelines.ingest.audio_files import beep, make_audio_file
from tests.data_pipelines.ingest.clips import make_video, picture, restamp, rewrite, stamp
from tests.data_pipelines.ingest.decoding import clip_of, needs_x264, numbers

CASES = Path(__file__).parent / "cases"

# 25 per second for a second, then 5 per second.
SLOWER = [min(i, 25) + 5 * max(0, i - 25) for i in range(50)]


def us(pts) -> list[int]:
    """Times of stamps of 25 per second."""
    return [40_000 * p for p in pts]


def kinds(clip) -> list[str]:
    return [note.kind for note in clip.notes]


def test_avi_with_an_empty_chunk_after_every_frame():
    path = CASES / "remuxed_b_frames.avi"
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 200
    clip = clip_of(path, partial="reject")
    assert clip.timestamps_us == us(range(100)) and clip.fps == 25
    assert clip.end_us == 4_000_000 and clip.notes == ()
    assert clip_of(path, 2.2, 2.6).timestamps_us == us(range(55, 65))


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "b_frames"),
    [
        ("mjpeg", "yuvj420p", 0),
        ("mpeg4", "yuv420p", 0),
        ("mpeg4", "yuv420p", 2),
        ("huffyuv", "yuv422p", 0),
        pytest.param("libx264", "yuv420p", 3, marks=needs_x264),
    ],
)
@pytest.mark.parametrize("pts", [SLOWER, range(0, 200, 4)], ids=["variable", "steady"])
def test_avi_with_empty_chunks(tmp_path, codec, pix_fmt, b_frames, pts):
    path = make_video(
        tmp_path / "a.avi", 50, fps=25, codec=codec, pix_fmt=pix_fmt, b_frames=b_frames, pts=pts
    )
    clip = clip_of(path, partial="reject")
    assert clip.timestamps_us == us(pts) and clip.notes == () and numbers(clip) == list(range(50))
    assert clip.fps == pytest.approx(49 * 25 / pts[-1], abs=0.001)
    part = clip_of(path, 1.0, 2.0, min_frames=1)
    assert part.timestamps_us == [t for t in us(pts) if 1_000_000 <= t < 2_000_000]


def joined(path: Path, jump: float, codec: str, frames: int = 50, **options) -> Path:
    """Two recordings of 25 per second, the clock of the second ``jump`` seconds too late."""
    source = make_video(
        path.with_name("source.mkv"), 2 * frames, fps=25, codec=codec, gop=frames, **options
    )

    def change(number, packet):
        stamp(packet, number / 25 + (jump if number >= frames else 0) + 40)

    return rewrite(source, path, change)


@pytest.mark.parametrize(
    ("name", "codec", "jump"),
    [
        ("a.ts", "mpeg2video", 36_000),
        ("a.ts", "mpeg2video", 20),
        ("a.ts", "mpeg2video", 2),
        ("a.mpg", "mpeg2video", 20),
        ("a.mkv", "mpeg4", 36_000),
        ("a.mkv", "mjpeg", 7_200),
        ("a.nut", "mpeg4", 7_200),
        ("a.mov", "mpeg4", 86_400),
    ],
)
def test_a_clock_that_jumps_forward_goes_on(tmp_path, name, codec, jump):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = joined(tmp_path / name, jump, codec, pix_fmt=pix_fmt)
    clip = clip_of(path, partial="reject")
    assert clip.timestamps_us == us(range(100)) and clip.fps == 25
    assert clip.end_us == 4_000_000 and kinds(clip) == ["timestamps"]
    assert "the clock jumps (+" in clip.notes[0].detail
    assert clip_of(path, 2.0, 4.0).frames == clip.frames[50:]
    assert clip_of(path, fps=5).timestamps_us == us(range(0, 100, 5))
    assert clip_of(path, 0.0, 1.0).notes == ()


@pytest.mark.parametrize("seconds", [1, 2])
@pytest.mark.parametrize(("name", "codec"), [("a.ts", "mpeg2video"), ("a.mpg", "mpeg1video")])
def test_a_clock_that_begins_anew_goes_on(tmp_path, name, codec, seconds):
    path = make_video(tmp_path / name, 25 * seconds, fps=25, codec=codec)
    path.write_bytes(path.read_bytes() * 2)
    clip = clip_of(path)
    assert numbers(clip) == 2 * list(range(25 * seconds))
    assert clip.timestamps_us == us(range(50 * seconds)) and kinds(clip) == ["timestamps"]
    last = clip_of(path, seconds + 0.2, seconds + 0.4)
    assert last.frames == clip.frames[25 * seconds + 5 : 25 * seconds + 10]


@needs_x264
def test_a_clock_that_jumps_among_frames_in_another_order(tmp_path):
    parts = []
    for number in range(2):
        path = tmp_path / f"{number}.ts"
        make_video(
            path,
            50,
            fps=25,
            codec="libx264",
            b_frames=3,
            pts=[p + 9999 * number for p in range(50)],
        )
        parts.append(path.read_bytes())
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    clip = clip_of(path)
    assert numbers(clip) == 2 * list(range(50)) and clip.timestamps_us == us(range(100))
    assert clip.fps == 25 and kinds(clip) == ["timestamps"]


def test_the_audio_follows_a_clock_that_jumps(tmp_path):
    first = make_audio_file(tmp_path / "1.ts", beep(3, 48_000), 48_000, codec="mp2")
    later = make_audio_file(
        tmp_path / "2.ts", beep(3, 48_000), 48_000, codec="mp2", shift_us=500_000_000
    )
    path = tmp_path / "a.ts"
    path.write_bytes(first.read_bytes() + later.read_bytes())
    clip = clip_of(path, audio="pcm16")
    assert np.diff(clip.timestamps_us) == pytest.approx(100_000, abs=100)
    loud = np.flatnonzero(np.abs(clip.audio.samples.astype(int)) > 3000) / 16_000
    assert loud[0] == pytest.approx(1.0, abs=0.15) and loud[-1] == pytest.approx(4.25, abs=0.15)
    assert not np.any((loud > 1.5) & (loud < 3.8))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("p.mkv", "mpeg4"),
        ("p.mp4", "mpeg4"),
        ("p.mov", "mjpeg"),
        ("p.avi", "mpeg4"),
        ("p.flv", "flv"),
    ],
)
@pytest.mark.parametrize("seconds", [12, 900])
def test_a_long_pause_is_neither_damage_nor_left_out(tmp_path, name, codec, seconds):
    pts = [i if i < 25 else i + 25 * seconds for i in range(50)]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    clip = clip_of(
        make_video(tmp_path / name, 50, fps=25, codec=codec, pts=pts, pix_fmt=pix_fmt),
        partial="reject",
    )
    assert clip.timestamps_us == us(pts) and clip.notes == ()


def test_one_wrong_stamp_keeps_the_other_times():
    clip = clip_of(CASES / "dup.mkv", partial="reject")
    assert clip.timestamps_us == us(SLOWER) and clip.fps == pytest.approx(8.448)
    assert [(note.kind, note.detail[:7]) for note in clip.notes] == [("timestamps", "1 of 50")]
    assert len(clip_of(CASES / "dup.mkv", 3.0, 5.0).frames) == 10


@pytest.mark.parametrize(
    ("name", "codec", "at", "off"),
    [
        ("a.mkv", "mjpeg", 10, -0.04),
        ("a.mkv", "mjpeg", 20, 30),
        ("a.mkv", "mpeg4", 20, -0.5),
        ("a.mkv", "mpeg4", 20, 0.7),
        ("a.webm", "libvpx", 30, -1),
        ("a.mkv", "mpeg4", 1, -0.04),
    ],
)
@pytest.mark.parametrize("pts", [list(range(50)), SLOWER], ids=["steady", "variable"])
def test_a_wrong_stamp_in_other_files(tmp_path, name, codec, at, off, pts):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV was built without {codec}")
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = make_video(tmp_path / name, 50, fps=25, codec=codec, pix_fmt=pix_fmt, pts=pts)
    clip = clip_of(restamp(path, at, off))
    found, right = clip.timestamps_us, us(pts)
    assert [*found[:at], *found[at + 1 :]] == [*right[:at], *right[at + 1 :]]
    assert found[at - 1] < found[at] < found[at + 1] and numbers(clip) == list(range(50))
    assert kinds(clip) == ["timestamps"] and "1 of 50 frame times" in clip.notes[0].detail


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.nut"])
def test_a_last_frame_hours_away_is_put_behind_the_others(tmp_path, name):
    source = make_video(tmp_path / "source.mkv", 50, fps=25)

    def change(number, packet):
        stamp(packet, number / 25 + 36_000 * (number == 49))

    clip = clip_of(rewrite(source, tmp_path / name, change), partial="reject")
    assert clip.timestamps_us == us(range(50)) and clip.fps == 25
    assert kinds(clip) == ["timestamps"]


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_stamps_that_are_all_alike_are_counted(tmp_path, codec):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = make_video(tmp_path / "source.mkv", 50, fps=25, codec=codec, pix_fmt=pix_fmt)
    path = rewrite(source, tmp_path / "a.mkv", lambda number, packet: stamp(packet, 0))
    clip = clip_of(path)
    assert clip.timestamps_us == us(range(50)) and clip.fps == 25
    assert kinds(clip) == ["timestamps"] and "counted at 25 per s" in clip.notes[0].detail


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.webm"])
def test_a_lower_rate_goes_by_the_times(name):
    whole = clip_of(CASES / name)
    half = clip_of(CASES / name, fps=12.5)
    assert half.frames == [*whole.frames[0:25:2], *whole.frames[26:]] and len(half.frames) == 37
    fifth = clip_of(CASES / name, fps=5)
    assert fifth.frames == [*whole.frames[0:25:5], *whole.frames[25:]]
    assert clip_of(CASES / name, fps=25).frames == whole.frames


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov"])
def test_a_lower_rate_is_the_same_in_every_container(tmp_path, name):
    pts = [0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 14, 15, 25, 50, 51, 52]
    path = make_video(tmp_path / name, 16, fps=25, pts=pts)
    assert clip_of(path, fps=12.5).timestamps_us == us([0, 2, 4, 9, 10, 12, 14, 25, 50, 52])


def test_names_that_could_be_addresses(tmp_path, monkeypatch):
    first = make_video(tmp_path / "a.mp4", 10)
    monkeypatch.chdir(tmp_path)
    for name in ("12:30 clip.mp4", "file:a.mp4", "http:a.mp4", "concat:a.mp4|a.mp4", "x:y:z.mkv"):
        make_video(tmp_path / name, 20, container="mp4")
        for path in (name, os.path.join(".", name), str(tmp_path / name)):
            assert len(clip_of(path).frames) == 20, path
    assert len(clip_of(first.name).frames) == 10


@pytest.mark.parametrize("suffix", ["csv", "txt", "jsonl"])
def test_names_that_could_be_addresses_in_lists(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    sizes = {"a.mp4": 5, "12:30 clip.mp4": 6, "file:a.mp4": 7, "x:1.mkv": 8}
    for name, frames in sizes.items():
        make_video(tmp_path / name, frames, container="mp4")
    lines = {
        "csv": ["path", *sizes],
        "txt": [f"{name} 0" for name in sizes],
        "jsonl": [json.dumps({"path": name}) for name in sizes],
    }
    Path(f"list.{suffix}").write_text("\n".join(lines[suffix]) + "\n")
    arguments = ["--source", f"list.{suffix}", "--out", "out", "--workers", "0", "--quiet"]
    assert main([*arguments, "--shards", "1"]) == 0
    [split] = manifest.load("out").splits
    _, source = manifest.open_split("out", split)
    found = {record.filename: len(record.frames) for record in map(schema.decode, source)}
    assert found == sizes


@pytest.mark.parametrize("name", ["a%02d.jpg", "a*.jpg", "a[12].png"])
def test_an_image_whose_name_is_a_pattern_is_that_image(tmp_path, name):
    """Taken for a video, as ``--media video`` does."""
    for i, other in enumerate((name, "a01.jpg", "a02.jpg", "a1.png")):
        kind = ".png" if other.endswith("png") else ".jpg"
        data = cv2.imencode(kind, picture(10 * i)[..., ::-1])[1].tobytes()
        (tmp_path / other).write_bytes(data)
    clip = clip_of(tmp_path / name, min_frames=1)
    assert numbers(clip) == [0]
