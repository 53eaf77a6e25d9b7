"""Kinds of files that must simply work: codecs, containers, pixel formats, extra streams."""

import av
import numpy as np
import pytest

from tests.data_pipelines.ingest.audio_files import beep, make_audio_file
from tests.data_pipelines.ingest.clips import make_video, picture
from tests.data_pipelines.ingest.decoding import clip_of, numbers


def needs(*codecs: str):
    missing = [codec for codec in codecs if codec not in av.codecs_available]
    return pytest.mark.skipif(bool(missing), reason=f"this PyAV was built without {missing}")


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("ffv1", "yuv420p10le", "mkv"),
        pytest.param("libx264", "yuv420p10le", "mp4", marks=needs("libx264")),
        pytest.param("libx265", "yuv420p10le", "mp4", marks=needs("libx265")),
        pytest.param("libx264", "yuv444p", "mp4", marks=needs("libx264")),
        ("mjpeg", "yuvj420p", "avi"),
        ("mjpeg", "yuvj444p", "mov"),
    ],
)
def test_pixel_formats(tmp_path, codec, pix_fmt, suffix):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = make_video(tmp_path / f"a.{suffix}", 12, codec=codec, pix_fmt=pix_fmt, options=options)
    with av.open(str(path)) as file:
        assert file.streams.video[0].pix_fmt == pix_fmt
    clip = clip_of(path)
    assert numbers(clip) == list(range(12))
    assert clip.timestamps_us == [i * 100_000 for i in range(12)] and clip.notes == ()


@pytest.mark.parametrize(
    ("name", "codec", "fps"),
    [
        ("a.mpg", "mpeg1video", 25),
        ("a.ts", "mpeg2video", 25),
        pytest.param("a.webm", "libvpx-vp9", 10, marks=needs("libvpx-vp9")),
        ("a.mkv", "mpeg4", 10),
    ],
)
def test_containers_that_do_not_count_their_frames(tmp_path, name, codec, fps):
    path = make_video(tmp_path / name, 20, codec=codec, fps=fps)
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 0
    clip = clip_of(path)
    assert numbers(clip) == list(range(20))
    assert clip.timestamps_us == pytest.approx([i * 1e6 / fps for i in range(20)], abs=1000)
    assert clip.notes == ()


@pytest.mark.parametrize(("frames", "fps", "side"), [(3, 30, 48), (2, 1, 32)])
def test_tiny_videos(tmp_path, frames, fps, side):
    clip = clip_of(make_video(tmp_path / "a.mp4", frames, fps=fps, height=side, width=side))
    assert len(clip.frames) == frames and clip.fps == fps
    assert (clip.height, clip.width) == (side, side)
    assert clip.timestamps_us == [round(i * 1e6 / fps) for i in range(frames)]


def test_lower_rate_of_a_video_of_variable_rate_goes_by_time(tmp_path):
    pts = [0, 1, 2, 3, 10, 20, 21, 22, 23, 30]  # of 10 per second
    clip = clip_of(make_video(tmp_path / "v.mp4", 10, pts=pts), fps=2.0)
    assert clip.timestamps_us == [0, 1_000_000, 2_000_000, 3_000_000]


def test_best_of_several_audio_streams_is_taken(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.bit_rate = 4_000_000
        sounds = [file.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        sounds[1].disposition = av.stream.Disposition.default
        for i in range(20):
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture(i))))
        file.mux(video.encode())
        for stream, level in zip(sounds, (1000, 2000), strict=True):
            audio = av.AudioFrame.from_ndarray(
                np.full((1, 32_000), level, np.int16), format="s16", layout="mono"
            )
            audio.sample_rate, audio.pts = 16_000, 0
            file.mux(stream.encode(audio))
            file.mux(stream.encode())
    clip = clip_of(path, audio="pcm16")
    assert numbers(clip) == list(range(20)) and clip.audio is not None
    assert set(clip.audio.samples) == {2000}
    assert [(note.kind, note.detail) for note in clip.notes] == [
        ("streams", "2 audio streams; took stream 2")
    ]


def test_rotated_video_with_audio_is_upright_and_heard(tmp_path):
    quiet = make_video(tmp_path / "r.mp4", 20, rotation=(90, False, False))
    loud = make_audio_file(tmp_path / "s.mp4", beep(2, 16_000, 1), 16_000, frames=20)
    path = tmp_path / "both.mov"
    with av.open(str(quiet)) as a, av.open(str(loud)) as b, av.open(str(path), "w") as file:
        sources = {a.streams.video[0]: a, b.streams.audio[0]: b}
        streams = {old: file.add_stream_from_template(old) for old in sources}
        for old, container in sources.items():
            if old.type == "video":
                streams[old].set_display_rotation(90)
            for packet in container.demux(old):
                if packet.dts is not None:
                    packet.stream = streams[old]
                    file.mux(packet)
    clip = clip_of(path, audio="pcm16")
    assert (clip.height, clip.width) == (64, 48)
    assert clip.audio is not None and np.abs(clip.audio.samples).max() > 10_000
