"""One video file to one clip: order, times, cuts, rates, sizes."""

import dataclasses
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest

from data_pipelines.ingest import decode
from data_pipelines.ingest.decode import DecodeOptions, decode_clip
from tests.data_pipelines.ingest.clips import make_video, picture
from tests.data_pipelines.ingest.decoding import clip_of, needs_x264, numbers


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", 'odd, "name" ü 中.mp4', "wrong.avi"])
def test_whole_video(tmp_path, name):
    container = "mp4" if name == "wrong.avi" else None  # the content decides, not the name
    clip = clip_of(make_video(tmp_path / name, 12, container=container))
    assert numbers(clip) == list(range(12))
    assert clip.timestamps_us == [i * 100_000 for i in range(12)]
    assert (clip.fps, clip.height, clip.width) == (10.0, 48, 64)
    assert (clip.source_height, clip.source_width) == (48, 64)
    assert (clip.start_us, clip.end_us) == (0, 1_200_000)
    assert clip.notes == ()


@needs_x264
def test_frames_with_b_frames_come_in_display_order(tmp_path):
    path = make_video(tmp_path / "b.mp4", 20, codec="libx264", b_frames=3, gop=10)
    clip = clip_of(path)
    assert numbers(clip) == list(range(20))
    assert np.all(np.diff(clip.timestamps_us) > 0)


@needs_x264
def test_avi_whose_frames_are_stored_in_another_order_has_its_times(tmp_path):
    path = make_video(tmp_path / "b.avi", 20, codec="libx264", b_frames=3)
    with av.open(str(path)) as file:
        pts = [frame.pts for frame in file.decode(video=0)]
    assert pts != sorted(pts)
    clip = clip_of(path)
    assert numbers(clip) == list(range(20))
    assert clip.timestamps_us == [i * 100_000 for i in range(20)]
    assert clip.notes == ()
    part = clip_of(path, 0.5, 1.0)
    assert numbers(part) == list(range(5, 10))


def test_avi_starts_at_zero_in_spite_of_the_reordering_delay(tmp_path):
    clip = clip_of(make_video(tmp_path / "b.avi", 20, b_frames=2))
    assert numbers(clip) == list(range(20))
    assert clip.timestamps_us == [i * 100_000 for i in range(20)]
    assert clip.notes == ()


def test_variable_frame_rate_keeps_the_real_times(tmp_path):
    pts = [0, 1, 2, 6, 7, 13]
    clip = clip_of(make_video(tmp_path / "v.mp4", 6, pts=pts))
    assert clip.timestamps_us == [p * 100_000 for p in pts]
    assert clip.notes == ()


def test_video_that_starts_late_starts_at_zero(tmp_path):
    clip = clip_of(make_video(tmp_path / "late.mkv", 4, pts=[50, 51, 52, 53]))
    assert clip.timestamps_us == [0, 100_000, 200_000, 300_000]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, 0.5, range(5)),
        (0.5, None, range(5, 20)),
        (0.5, 1.0, range(5, 10)),
        (0.45, 1.01, range(5, 11)),
        (0.0, 99.0, range(20)),
    ],
)
def test_cut(tmp_path, start, end, expected):
    clip = clip_of(make_video(tmp_path / "c.mp4", 20), start, end)
    assert numbers(clip) == list(expected)
    assert clip.timestamps_us == [i * 100_000 for i in expected]
    assert clip.start_us == round((start or 0) * 1e6)
    assert clip.end_us == min(2_000_000, round((end or 99) * 1e6))
    assert clip.notes == ()


def test_adjacent_cuts_share_no_frame_and_lose_none(tmp_path):
    """30 per second in Matroska: times are rounded to milliseconds."""
    path = make_video(tmp_path / "c.mkv", 40, fps=30)
    parts = [clip_of(path, start, start + 0.2) for start in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert [n for part in parts for n in numbers(part)] == list(range(36))


def test_cut_at_a_frame_finds_that_frame_although_its_time_is_rounded(tmp_path):
    path = make_video(tmp_path / "c.mkv", 10, fps=30)  # the second frame is at 33 ms
    assert numbers(clip_of(path, 1 / 30, 4 / 30)) == [1, 2, 3]


def test_max_seconds_counts_from_the_start(tmp_path):
    path = make_video(tmp_path / "c.mp4", 20)
    assert numbers(clip_of(path, max_seconds=0.3)) == [0, 1, 2]
    assert numbers(clip_of(path, 1.0, max_seconds=0.3)) == [10, 11, 12]
    assert numbers(clip_of(path, 1.0, 1.2, max_seconds=9.0)) == [10, 11]


@pytest.mark.parametrize(
    ("codec", "suffix", "b_frames"),
    [
        ("mpeg4", "mp4", 0),
        ("mpeg4", "mkv", 2),
        pytest.param("libx264", "mp4", 3, marks=needs_x264),
        pytest.param("libx264", "mkv", 3, marks=needs_x264),
    ],
)
def test_seeking_gives_exactly_the_frames_of_reading_through(
    tmp_path, monkeypatch, codec, suffix, b_frames
):
    path = make_video(tmp_path / f"s.{suffix}", 80, codec=codec, b_frames=b_frames, gop=12)
    cuts = [(2.0, 2.5), (3.1, 3.4), (3.55, None), (6.05, 6.3), (7.7, None)]
    sought = [clip_of(path, *cut) for cut in cuts]
    used = []
    monkeypatch.setattr(decode._Pass, "_seek", lambda self: used.append(1) and False)
    assert [clip_of(path, *cut) for cut in cuts] == sought
    assert len(used) == len(cuts)
    assert numbers(sought[1]) == [31, 32, 33]


def test_seek_that_lands_behind_the_start_is_not_trusted(tmp_path, monkeypatch):
    path = make_video(tmp_path / "s.mp4", 60)
    expected = clip_of(path, 3.2, 3.6)

    def seek_too_far(self):
        self._container.seek(5_000_000, backward=True)
        return True

    monkeypatch.setattr(decode._Pass, "_seek", seek_too_far)
    assert clip_of(path, 3.2, 3.6) == expected


@pytest.mark.parametrize(
    ("source", "fps", "expected"),
    [
        (30, 10.0, range(0, 30, 3)),
        (30, 30.0, range(30)),
        (30, 60.0, range(30)),  # never repeats a frame
        (25, 10.0, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]),
        (10, 3.0, [0, 3, 7, 10, 13, 17, 20, 23, 27]),
    ],
)
def test_lower_rate_takes_the_nearest_frames(tmp_path, source, fps, expected):
    clip = clip_of(make_video(tmp_path / "f.mp4", 30, fps=source), fps=fps)
    assert numbers(clip) == list(expected)
    assert clip.timestamps_us == [round(i * 1e6 / source) for i in expected]
    assert clip.fps == min(fps, source)


def test_rate_in_the_header_is_checked_against_the_times(tmp_path):
    """Ten frames per second in a container whose header promises a hundred."""
    path = make_video(tmp_path / "f.mkv", 30, fps=100, pts=[10 * i for i in range(30)])
    with av.open(str(path)) as file:
        assert file.streams.video[0].average_rate == 100
    assert clip_of(path).fps == 10.0


def test_size_and_anamorphic_pixels(tmp_path):
    path = make_video(tmp_path / "z.mp4", 3, height=96, width=128, pixel_aspect=Fraction(2))
    for pixels, width in (("display", 128), ("stored", 64)):
        clip = clip_of(path, short_side=48, pixels=pixels)
        assert (clip.height, clip.width) == (48, width)
        assert (clip.source_height, clip.source_width) == (96, 128)


def test_rotated_video_is_stored_upright(tmp_path):
    clip = clip_of(make_video(tmp_path / "r.mp4", 3, rotation=(90, False, False)))
    assert (clip.height, clip.width) == (64, 48)
    assert (clip.source_height, clip.source_width) == (64, 48)


def test_best_of_several_video_streams_is_taken(tmp_path):
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as file:
        streams = []
        for size in (32, 96):
            stream = file.add_stream("mpeg4", rate=10)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        streams[1].disposition = av.stream.Disposition.default
        for i in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(picture(i, stream.height, stream.width))
                file.mux(stream.encode(frame))
        for stream in streams:
            file.mux(stream.encode())
    clip = clip_of(path)
    assert (clip.height, clip.width) == (96, 96)
    assert clip.notes[0].kind == "streams"
    assert "2 video streams; took stream 1 (96x96)" in clip.notes[0].detail


def test_frames_hidden_by_an_edit_list_are_not_missed(tmp_path):
    """An MP4 that was cut without re-encoding announces more frames than it shows."""
    source = make_video(tmp_path / "whole.mp4", 40, gop=40)
    path = tmp_path / "edited.mp4"
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(source)) as old, av.open(str(path), "w", container_options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is None:
                continue
            shift = round(2.0 / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            new.mux(packet)
    with av.open(str(path)) as edited:
        announced = edited.streams.video[0].frames
    clip = clip_of(path)
    assert announced == 40
    assert numbers(clip) == list(range(20, 40))
    assert clip.notes == ()


def test_held_last_frame_is_not_a_missing_part(tmp_path):
    """A screen recording whose last image stays for most of the time."""
    path = tmp_path / "h.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(4):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(i))):
                packet.duration = 1 if i < 3 else 40
                file.mux(packet)
        file.mux(stream.encode())
    clip = clip_of(path)
    assert clip.notes == () and clip.end_us == 4_300_000
    assert clip.timestamps_us[-1] == 300_000


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_audio_that_goes_on_after_the_video_is_no_missing_part(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = file.add_stream("aac", rate=16000)
        for i in range(10):
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture(i))))
        file.mux(video.encode())
        for i in range(60):
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate, silence.pts = 16000, i * 1024
            file.mux(audio.encode(silence))
        file.mux(audio.encode())
    with av.open(str(path)) as file:
        assert file.duration > 3_000_000
    clip = clip_of(path)
    assert len(clip.frames) == 10 and clip.notes == ()


def test_same_file_gives_same_bytes(tmp_path):
    path = make_video(tmp_path / "a.mp4", 10)
    shutil.copy(path, tmp_path / "b.mp4")
    assert clip_of(path) == clip_of(tmp_path / "b.mp4")
    assert dataclasses.asdict(clip_of(path)) == dataclasses.asdict(clip_of(path))


def test_tick_is_called_along_the_way_and_may_stop_it(tmp_path):
    path = make_video(tmp_path / "t.mp4", 30)
    calls = []

    def tick():
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_clip(str(path), DecodeOptions(), tick=tick)
    assert len(calls) == 10
