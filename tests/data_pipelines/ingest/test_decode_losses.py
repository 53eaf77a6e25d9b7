"""What is left of damaged videos, and whole ones that look damaged."""

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data_pipelines.ingest.clips import make_video, picture, rewrite, spoil, truncate
from tests.data_pipelines.ingest.decoding import clip_of, needs_x264, numbers, stage_of
from tests.data_pipelines.ingest.test_decode_kinds import needs

CASES = Path(__file__).parent / "cases"
KEY = 12  # frames from key frame to key frame


def details(clip) -> dict[str, str]:
    return {note.kind: note.detail for note in clip.notes}


@pytest.mark.parametrize("name", ["h264.mp4", "vp8.webm"])
def test_one_bad_packet_costs_the_frames_up_to_the_next_key_frame(name):
    clip = clip_of(CASES / name, partial="reject")
    assert len(clip.frames) == 92 and clip.fps == 25
    assert clip.timestamps_us == [40_000 * i for i in range(100) if not 40 <= i < 48]
    assert details(clip) == {"corrupt": "left out 8 damaged frames"}
    assert clip_of(CASES / name, 0.0, 1.6).notes == ()
    assert clip_of(CASES / name, 2.0, 3.0).notes == ()


INTRA = [
    ("a.mov", "png", "rgb24"),
    ("a.mov", "prores_ks", "yuv422p10le"),
    ("a.avi", "mjpeg", "yuvj420p"),
    ("a.mkv", "mjpeg", "yuvj420p"),
]


@pytest.mark.parametrize("at", [(0,), (49,), (3, 4, 20)])
@pytest.mark.parametrize(("name", "codec", "pix_fmt"), INTRA)
def test_a_bad_packet_of_a_codec_without_prediction_costs_itself(
    tmp_path, name, codec, pix_fmt, at
):
    path = make_video(tmp_path / name, 50, fps=25, codec=codec, pix_fmt=pix_fmt)
    whole = clip_of(path)
    clip = clip_of(spoil(path, *at), partial="reject")
    kept = [i for i in range(50) if i not in at]
    assert clip.frames == [whole.frames[i] for i in kept]
    assert clip.timestamps_us == [40_000 * i for i in kept] and clip.fps == 25
    assert details(clip) == {"corrupt": f"left out {len(at)} damaged frames"}


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"),
        ("a.avi", "mpeg4"),
        ("a.mkv", "ffv1"),
        ("a.flv", "flv"),
        pytest.param("a.webm", "libvpx", marks=needs("libvpx")),
        pytest.param("b.webm", "libvpx-vp9", marks=needs("libvpx-vp9")),
    ],
)
@pytest.mark.parametrize("at", [0, 20, 47])
def test_a_bad_packet_of_a_predicting_codec(tmp_path, name, codec, at):
    options = {"cpu-used": "8"} if codec.startswith("libvpx") else {}
    path = make_video(tmp_path / name, 48, fps=25, codec=codec, gop=KEY, options=options)
    whole = clip_of(path)
    clip = clip_of(spoil(path, at))
    behind = min(48, at - at % KEY + KEY)
    kept = [i for i in range(48) if not at <= i < behind]
    assert clip.frames == [whole.frames[i] for i in kept]
    assert clip.timestamps_us == [whole.timestamps_us[i] for i in kept]
    assert details(clip)["corrupt"] == f"left out {behind - at} damaged frames"
    assert ("partial" in details(clip)) == (len(kept) < 0.9 * 48)


@needs_x264
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_bad_packet_among_frames_in_another_order(tmp_path, name):
    options = {"sc_threshold": "0"}
    path = make_video(
        tmp_path / name, 60, fps=25, codec="libx264", gop=KEY, b_frames=2, options=options
    )
    whole = clip_of(path)
    clip = clip_of(spoil(path, 25))
    lost = sorted(set(whole.timestamps_us) - set(clip.timestamps_us))
    at = [whole.timestamps_us.index(t) for t in clip.timestamps_us]
    assert clip.frames == [whole.frames[i] for i in at]
    assert 1 <= len(lost) <= KEY and lost[0] // 40_000 >= 24 and lost[-1] // 40_000 < 36
    assert details(clip)["corrupt"] == f"left out {len(lost)} damaged frames"


def test_too_little_that_is_left_says_why(tmp_path):
    path = spoil(make_video(tmp_path / "a.mp4", 20, gop=20), 1)
    stage, message = stage_of(path)
    assert stage == "decode" and message == "1 frames and 19 damaged ones, at least 2 needed"


def test_frames_held_back_when_a_file_ends_early_are_kept():
    clip = clip_of(CASES / "cut_fast.mp4")
    assert clip.timestamps_us == [40_000 * i for i in range(79)]
    assert details(clip)["partial"] == "79 of 100 frames"


@needs_x264
@pytest.mark.parametrize("share", [0.4, 0.6, 0.85])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_every_whole_frame_of_a_cut_file_is_kept(tmp_path, name, share):
    options = {"movflags": "faststart"} if name != "a.mkv" else {}
    path = make_video(
        tmp_path / name, 60, codec="libx264", gop=20, b_frames=3, container_options=options
    )
    truncate(path, share)
    with av.open(str(path)) as file:
        # Of all packets but the last, which is cut, a frame comes out.
        packets = sum(packet.size > 0 for packet in file.demux(video=0))
    clip = clip_of(path)
    assert packets - 3 <= len(clip.frames) <= packets and "partial" in details(clip)
    assert numbers(clip)[: packets - 4] == list(range(packets - 4))


def test_a_gap_that_the_demuxer_skips_over_is_told():
    clip = clip_of(CASES / "vp9.webm")
    assert len(clip.frames) == 56 and clip.fps == 25
    assert details(clip)["partial"] == "56 of about 100 frames, damaged in the middle"
    assert "about 44 frames are missing" in details(clip)["corrupt"]
    assert "between 1.56 and 3.36 s" in details(clip)["corrupt"]
    assert stage_of(CASES / "vp9.webm", partial="reject")[0] == "decode"
    assert clip_of(CASES / "vp9.webm", 0.0, 1.5).notes == ()


@pytest.mark.parametrize(
    ("name", "codec", "size"),
    [
        ("a.mkv", "mpeg4", 3000),
        ("a.mkv", "mjpeg", 4000),
        ("a.flv", "flv", 3000),
        ("a.wmv", "wmv2", 400),
        ("a.mpg", "mpeg1video", 3000),
        pytest.param("a.webm", "libvpx", 800, marks=needs("libvpx")),
        pytest.param("a.ogv", "libvpx", 800, marks=needs("libvpx")),
    ],
)
def test_other_gaps_are_told(tmp_path, name, codec, size):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {}
    path = make_video(
        tmp_path / name, 100, fps=25, codec=codec, pix_fmt=pix_fmt, gop=KEY, options=options
    )
    assert len(clip_of(path, partial="reject").frames) == 100
    data = bytearray(path.read_bytes())
    at = int(len(data) * 0.45)
    data[at : at + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    clip = clip_of(path)
    assert len(clip.frames) < 100 and clip.fps == 25
    assert {"partial", "corrupt"} & set(details(clip)), clip.notes


def test_chunks_of_an_avi_that_cannot_be_found_leave_their_times_empty(tmp_path):
    path = make_video(tmp_path / "a.avi", 100, fps=25, codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(path)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    data[places[40] - 8 : places[43] - 8] = bytes(places[43] - places[40])
    path.write_bytes(data)
    clip = clip_of(path)
    assert clip.timestamps_us == [40_000 * i for i in range(100) if not 40 <= i < 43]
    assert details(clip) == {"corrupt": "left out 3 damaged frames"}


@pytest.mark.parametrize(("name", "shown"), [("elst_end.mp4", 50), ("elst_two.mp4", 75)])
def test_what_an_edit_list_hides_is_not_missing(name, shown):
    clip = clip_of(CASES / name, partial="reject")
    assert clip.timestamps_us == [40_000 * i for i in range(shown)] and clip.notes == ()


def edited(path: Path, edits: list[tuple[int, int]], gop: int) -> Path:
    """An MP4 of 40 frames at 10 per second that shows parts: (first frame, number of frames)."""
    make_video(path, 40, gop=gop)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        ticks = round(1 / (10 * file.streams.video[0].time_base))
    at = data.index(b"edts") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    entries = b"".join(
        (100 * count).to_bytes(4, "big") + (first * ticks).to_bytes(4, "big") + b"\0\1\0\0"
        for first, count in edits
    )
    elst = (16 + len(entries)).to_bytes(4, "big") + b"elst\0\0\0\0" + len(edits).to_bytes(4, "big")
    edts = (8 + len(elst) + len(entries)).to_bytes(4, "big") + b"edts" + elst + entries
    for name in (b"moov", b"trak"):
        start = data.index(name) - 4
        long = int.from_bytes(data[start : start + 4], "big") + len(edts) - size
        data[start : start + 4] = long.to_bytes(4, "big")
    data[at : at + size] = edts
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "edits",
    [[(0, 20)], [(20, 20)], [(13, 9)], [(0, 5), (30, 10)], [(0, 4), (14, 4), (35, 5)]],
    ids=["end", "start", "middle", "two", "three"],
)
@pytest.mark.parametrize("gop", [1, 5, 40])
def test_edit_lists_of_other_forms(tmp_path, edits, gop):
    clip = clip_of(edited(tmp_path / "a.mp4", edits, gop), partial="reject")
    shown = [i for first, count in edits for i in range(first, first + count)]
    assert numbers(clip) == shown and clip.notes == ()
    assert clip.timestamps_us == [100_000 * i for i in range(len(shown))]


def test_an_edited_file_that_is_cut_is_still_partial(tmp_path):
    path = tmp_path / "a.mp4"
    edited(path, [(0, 30)], 5)
    with av.open(str(path)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for low, high in itertools.pairwise(places[10:26]):
        data[low:high] = bytes(high - low)
    path.write_bytes(data)
    clip = clip_of(path)
    assert "partial" in details(clip) and len(clip.frames) < 20


def with_audio(path: Path, video: str, audio: str, seconds: float = 4.0) -> Path:
    """Twenty frames at 10 per second beside a longer audio."""
    with av.open(str(path), "w") as file:
        pictures = file.add_stream(video, rate=10)
        pictures.width, pictures.height = 64, 48
        pictures.pix_fmt = "yuv420p"
        tones = file.add_stream(audio, rate=48_000, layout="mono")
        tones.bit_rate = 64_000
        kind = tones.codec_context.format.name
        packets = []
        for i in range(20):
            packets += pictures.encode(av.VideoFrame.from_ndarray(picture(i)))
        packets += pictures.encode()
        size = tones.codec_context.frame_size or 1024
        for at in range(0, round(seconds * 48_000), size):
            silence = np.zeros((1, size), {"flt": "f4", "s16": "i2", "s32": "i4"}[kind[:3]])
            frame = av.AudioFrame.from_ndarray(silence, format=kind, layout="mono")
            frame.sample_rate, frame.pts = 48_000, at
            packets += tones.encode(frame)
        packets += tones.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            file.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "video", "audio"),
    [
        ("a.mkv", "mpeg4", "flac"),
        ("a.flv", "flv", "libmp3lame"),
        ("a.wmv", "wmv2", "wmav2"),
        ("a.avi", "mpeg4", "libmp3lame"),
        ("a.nut", "mpeg4", "libmp3lame"),
        ("a.mov", "mpeg4", "aac"),
        pytest.param("a.webm", "libvpx", "libopus", marks=needs("libvpx", "libopus")),
    ],
)
def test_a_whole_video_beside_a_longer_audio(tmp_path, name, video, audio):
    path = with_audio(tmp_path / name, video, audio)
    # Muxers other than ffmpeg's write no such tag.
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"XURATION"))
    clip = clip_of(path, partial="reject")
    assert len(clip.frames) == 20 and clip.notes == ()


def test_a_cut_file_with_audio_is_still_partial(tmp_path):
    for name, video, audio in (("a.mkv", "mpeg4", "flac"), ("a.flv", "flv", "libmp3lame")):
        path = with_audio(tmp_path / name, video, audio, 2.0)
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"XURATION"))
        assert clip_of(path, partial="reject").notes == ()
        truncate(path, 0.75)
        assert "partial" in details(clip_of(path)), name


@pytest.mark.parametrize("name", ["a.mkv", "a.mov", "a.mp4"])
def test_a_last_frame_that_is_held(tmp_path, name):
    source = make_video(tmp_path / "source.mkv", 20)

    def change(number, packet):
        if number == 19:
            packet.duration = round(10 / packet.time_base)

    clip = clip_of(rewrite(source, tmp_path / name, change), partial="reject")
    assert len(clip.frames) == 20 and clip.notes == () and clip.end_us == 11_900_000
