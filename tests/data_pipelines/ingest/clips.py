"""Small video files made on the spot, healthy and damaged."""

import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

REAL = os.environ.get("IVJ_VIDEO_DIR", "")

needs_real_clips = pytest.mark.skipif(
    not os.path.isdir(os.path.join(REAL, "damaged")),
    reason="set IVJ_VIDEO_DIR to a folder with the real test clips",
)


def picture(i: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth RGB image (H, W, 3) whose brightness tells its number i."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, (i * 5) % 256)], -1)
    image[: height // 4, : width // 4] = (40 + 4 * i) % 256
    return image.astype(np.uint8)


def make_video(
    path: str | os.PathLike[str],
    frames: int = 10,
    *,
    fps: int = 10,
    height: int = 48,
    width: int = 64,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    gop: int = 5,
    b_frames: int = 0,
    pixel_aspect: Fraction | None = None,
    rotation: tuple[int, bool, bool] | None = None,
    pts: list[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    container: str | None = None,
    images: list[np.ndarray] | None = None,
) -> Path:
    """Encode ``picture(0..frames)``; ``pts`` in units of 1/fps, ``rotation`` (angle, h, v)."""
    with av.open(
        os.fspath(path), "w", format=container, container_options=container_options or {}
    ) as file:
        stream = file.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = width, height
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        if b_frames:
            stream.max_b_frames = b_frames
        stream.bit_rate = 4_000_000
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write rotation metadata")
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        file.start_encoding()  # a video without frames still has a header
        for i in range(frames):
            image = images[i] if images else picture(i, height, width)
            frame = av.VideoFrame.from_ndarray(image)
            if pts:
                frame.pts, frame.time_base = pts[i], Fraction(1, fps)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return Path(path)


def make_folder(folder: Path, frames: Sequence[int], name: str = "{}.mp4") -> Path:
    """A new folder with one video of each length, named by its place in the row."""
    folder.mkdir(parents=True)
    for i, count in enumerate(frames):
        make_video(folder / name.format(i), count)
    return folder


def make_splits(root: Path, counts: Mapping[str, int], labels: Sequence[str]) -> None:
    """SPLIT/LABEL/file, with a video cut short and a page among those of train/run."""
    for split, count in counts.items():
        for label in labels:
            make_folder(root / split / label, range(6, 6 + count), "clip {}.mp4")
    truncate(make_video(root / "train" / "run" / "half.mkv", 40), 0.6)
    (root / "train" / "run" / "page.mp4").write_text("<html>")


def rewrite(
    source: Path,
    target: str | os.PathLike[str],
    change: Callable[[int, av.Packet], bool | None] = lambda number, packet: None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Copy packets into another container; ``change`` may alter them, False leaves one out."""
    with (
        av.open(os.fspath(source)) as old,
        av.open(os.fspath(target), "w", container_options=container_options or {}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and change(number, packet) is not False:
                packet.stream = stream
                new.mux(packet)
    return Path(target)


def stamp(packet: av.Packet, seconds: float) -> None:
    """Set both times of a packet without reordering."""
    packet.pts = packet.dts = round(seconds / packet.time_base)


def restamp(path: Path, number: int, seconds: float) -> Path:
    """Move the time of one packet of a Matroska file, which no muxer would write."""
    with av.open(os.fspath(path)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    at = data.index(packets[number]) - 3  # a block: track, time in its cluster, flags, content
    assert data[at - 1] == 0x81
    time = int.from_bytes(data[at : at + 2], "big", signed=True) + round(1000 * seconds)
    data[at : at + 2] = time.to_bytes(2, "big", signed=True)
    path.write_bytes(data)
    return path


def spoil(path: Path, *numbers: int) -> Path:
    """Overwrite packets of the video with noise; their lengths and places stay."""
    with av.open(os.fspath(path)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    data = path.read_bytes()
    noise = np.random.default_rng(0)
    for number in numbers:
        assert data.count(packets[number]) == 1
        data = data.replace(packets[number], noise.bytes(len(packets[number])))
    path.write_bytes(data)
    return path


def make_audio(path: str | os.PathLike[str]) -> Path:
    """A second of silence without any video."""
    with av.open(os.fspath(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        for i in range(16):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 16000, i * 1024
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return Path(path)


def truncate(path: Path, share: float) -> Path:
    """Cut a file to a share of its size."""
    os.truncate(path, int(path.stat().st_size * share))
    return path


def scramble(path: Path, start: float, end: float) -> Path:
    """Overwrite a part of a file with noise."""
    data = bytearray(path.read_bytes())
    low, high = int(len(data) * start), int(len(data) * end)
    data[low:high] = np.random.default_rng(0).bytes(high - low)
    path.write_bytes(data)
    return path
