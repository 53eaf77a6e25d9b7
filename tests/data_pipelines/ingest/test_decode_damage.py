"""Files that give no clip, or only a part of one."""

import os
import sys

import av
import pytest
import simplejpeg

from data_pipelines.ingest import decode
from data_pipelines.ingest.container import open_video
from tests.data_pipelines.ingest.clips import make_audio, make_video, picture, scramble, truncate
from tests.data_pipelines.ingest.decoding import clip_of, needs_x264, numbers, stage_of

# Python 3.13 says it in another word.
NULL = "character" if sys.version_info >= (3, 13) else "byte"


def bad_files(folder) -> dict[str, tuple]:
    """Path -> expected stage and part of the message."""
    folder.mkdir()

    def write(name: str, data: bytes):
        (folder / name).write_bytes(data)
        return folder / name

    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    jpeg = simplejpeg.encode_jpeg(picture(0), 90, "RGB", "420")
    return {
        folder / "missing.mp4": ("open", "No such file"),
        folder / "nul\0.mp4": ("open", f"embedded null {NULL}"),
        folder / "half \ud800.mp4": ("open", "surrogates"),
        folder / "folder.mp4": ("open", "is a folder"),
        folder / "pipe.mp4": ("open", "not a regular file"),
        write("zero.mp4", b""): ("open", "the file is empty (0 bytes)"),
        write("text.mp4", b"this is not a video\n" * 20): ("open", "not a readable video"),
        write("page.mp4", b"<!DOCTYPE html><html>404</html>"): ("open", "not a readable video"),
        write("list.mp4", b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n"): ("open", "not a readable"),
        write("jpeg.mp4", jpeg): ("short", "1 frames, at least 2 needed"),
        make_video(folder / "one.mp4", 1): ("short", "1 frames, at least 2 needed"),
        make_audio(folder / "audio.mp4"): ("empty", "no video stream (found: audio)"),
        # the index is at the end of the file
        truncate(make_video(folder / "cut.mp4", 30), 0.6): ("open", "not a readable video"),
        make_video(folder / "none.mkv", 0): ("open", "not a readable video"),
        make_video(folder / "none.avi", 0): ("empty", "no frames"),
        make_video(folder / "none.mp4", 0): ("empty", "no video stream (found: no streams)"),
    }


def test_bad_files_name_the_stage(tmp_path):
    for path, (stage, text) in bad_files(tmp_path / "bad").items():
        found, message = stage_of(path)
        assert (found, text in message) == (stage, True), f"{path.name!a}: {found}: {message}"


FASTSTART = {"movflags": "faststart"}


@pytest.mark.parametrize(
    ("name", "damage", "container_options"),
    [
        ("cut.mkv", lambda path: truncate(path, 0.5), {}),
        ("scrambled.avi", lambda path: scramble(path, 0.6, 0.8), {}),
        ("cut.avi", lambda path: truncate(path, 0.5), {}),
        ("cut.mp4", lambda path: truncate(path, 0.5), FASTSTART),
        ("scrambled.mp4", lambda path: scramble(path, 0.4, 0.6), FASTSTART),
        ("scrambled.mkv", lambda path: scramble(path, 0.4, 0.6), {}),
    ],
)
def test_damaged_videos_are_partial(tmp_path, name, damage, container_options):
    path = make_video(tmp_path / name, 60, container_options=container_options, gop=10)
    whole = clip_of(path)
    damage(path)
    clip = clip_of(path)
    assert 2 <= len(clip.frames) < 54
    assert clip.notes[0].kind == "partial"
    assert clip.frames[:10] == whole.frames[:10]
    stage, message = stage_of(path, partial="reject")
    assert stage == "decode" and "only part of it could be decoded" in message


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mp4"])
def test_metadata_that_is_no_utf_8_is_no_damage(tmp_path, name):
    plain = make_video(tmp_path / f"plain-{name}", 8)
    path = tmp_path / name
    with av.open(str(plain)) as old, av.open(str(path), "w") as new:
        new.metadata["title"] = "Caf? in Z?rich"
        video = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                new.mux(packet)
    data = path.read_bytes()
    assert data.count(b"Caf? in Z?rich") == 1
    path.write_bytes(data.replace(b"Caf? in Z?rich", b"Caf\xe9 in Z\xfcrich"))
    with open_video(str(path)) as file:
        assert file.metadata["title"] == "Caf\udce9 in Z\udcfcrich"
    assert clip_of(path) == clip_of(plain)


@needs_x264
def test_video_whose_beginning_is_damaged_starts_at_the_next_key_frame(tmp_path):
    path = make_video(tmp_path / "b.mp4", 50, codec="libx264", gop=20)
    with av.open(str(path)) as file:
        packet = next(file.demux(video=0))
    data = bytearray(path.read_bytes())
    data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    clip = clip_of(path)
    assert numbers(clip)[-30:] == list(range(20, 50)) and len(clip.frames) <= 31
    assert clip.notes[0].kind == "partial" and "of 50 frames" in clip.notes[0].detail


def test_cut_before_the_damage_is_not_partial(tmp_path):
    path = truncate(make_video(tmp_path / "cut.mkv", 60, gop=10), 0.6)
    assert clip_of(path, 0.0, 1.5).notes == ()
    assert clip_of(path, 1.0, 5.0).notes[0].kind == "partial"


def test_frames_the_decoder_marks_as_corrupt_are_left_out(tmp_path, monkeypatch):
    path = make_video(tmp_path / "c.mp4", 20)
    broken = {3, 4}

    class Frame:
        """An av.VideoFrame that reports damage (real damage depends on the codec build)."""

        def __init__(self, frame, number):
            self._frame, self.is_corrupt = frame, number in broken

        def __getattr__(self, name):
            return getattr(self._frame, name)

    frames = decode._Pass._frames
    monkeypatch.setattr(
        decode._Pass,
        "_frames",
        lambda self, tick: (
            frame if i not in broken else Frame(frame, i)
            for i, frame in enumerate(frames(self, tick))
        ),
    )
    clip = clip_of(path)
    assert numbers(clip) == [i for i in range(20) if i not in broken]
    assert [note.kind for note in clip.notes] == ["corrupt"]
    assert clip.timestamps_us[3] == 500_000
    broken.update(range(20))
    assert stage_of(path) == ("empty", "the video stream has all 20 frames are corrupt")


def test_damage_outside_the_cut_does_not_matter(tmp_path, monkeypatch):
    path = make_video(tmp_path / "c.mp4", 20)
    frames = decode._Pass._frames

    class Frame:
        is_corrupt = True

        def __init__(self, frame):
            self._frame = frame

        def __getattr__(self, name):
            return getattr(self._frame, name)

    monkeypatch.setattr(
        decode._Pass,
        "_frames",
        lambda self, tick: (
            Frame(frame) if i < 5 else frame for i, frame in enumerate(frames(self, tick))
        ),
    )
    assert clip_of(path, 1.0, 1.5).notes == ()
    assert [note.kind for note in clip_of(path, 0.0, 1.0).notes] == ["partial", "corrupt"]


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError, ValueError])
def test_surprises_inside_a_file_cost_that_file_only(tmp_path, monkeypatch, error):
    def fail(self, frame):
        raise error("surprise")

    path = make_video(tmp_path / "s.mp4", 5)
    monkeypatch.setattr("data_pipelines.ingest.encode.FrameEncoder.encode", fail)
    assert stage_of(path) == ("decode", f"{error.__name__}: surprise")


def test_minimum_number_of_frames(tmp_path):
    path = make_video(tmp_path / "m.mp4", 5)
    assert len(clip_of(path, min_frames=5).frames) == 5
    assert stage_of(path, min_frames=6) == ("short", "5 frames, at least 6 needed")
    assert len(clip_of(make_video(tmp_path / "1.mp4", 1), min_frames=1).frames) == 1
    jpeg = simplejpeg.encode_jpeg(picture(0), 90, "RGB", "420")
    (tmp_path / "jpeg.mp4").write_bytes(jpeg)
    assert len(clip_of(tmp_path / "jpeg.mp4", min_frames=1).frames) == 1


def test_cut_outside_the_video(tmp_path):
    path = make_video(tmp_path / "o.mp4", 10)
    stage, message = stage_of(path, 5.0, 7.0)
    assert stage == "short"
    assert message == "no frame from 5 s to 7 s; the video ends at 1.00 s"
    assert stage_of(path, 3.0)[0] == "short"  # far enough to be sought


def test_records_that_would_be_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_RECORD_BYTES", 5000)
    stage, message = stage_of(make_video(tmp_path / "l.mp4", 50))
    assert stage == "long" and "--max-seconds" in message
