"""What a torch user runs instead: decode the video for every sample, with one decoder thread."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from data_pipelines.clips import sampling, transforms
from data_pipelines.config import ClipConfig

Reader = Callable[[Path, ClipConfig, np.random.Generator], list[np.ndarray]]


class CpuTime:
    """`with CpuTime() as t:` leaves the CPU seconds of this process in `t.seconds`."""

    seconds: float

    def __enter__(self) -> CpuTime:
        self._began = time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.process_time() - self._began


def wait_until_idle(quiet: float = 0.05, limit: float = 60.0) -> None:
    """Returns when the threads of this process have nothing left to do.

    Raises:
      RuntimeError: they never rest.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        with CpuTime() as used:
            time.sleep(quiet)
        if used.seconds < 0.02 * quiet:
            return
    raise RuntimeError(f"reading ahead did not end within {limit:g} s")


def shape_of(path: Path) -> tuple[int, int, int] | None:
    """(width, height, frames) by the container, None for what is no video."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                return None
            return stream.width, stream.height, stream.frames
    except (FFmpegError, OSError, UnicodeError):
        return None


def has_decord() -> bool:
    return importlib.util.find_spec("decord") is not None


def decord_clip(path: Path, clip: ClipConfig, rng: np.random.Generator) -> list[np.ndarray]:
    """The frames of one random window, as the reference's datasets read them."""
    import decord  # pyright: ignore[reportMissingImports]

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    wanted = sampling.TRAIN[clip.sampling](len(reader), clip.frames, clip.stride, rng)
    return list(reader.get_batch(wanted.tolist()).asnumpy())


def pyav_clip(path: Path, clip: ClipConfig, rng: np.random.Generator) -> list[np.ndarray]:
    """The same: seek to the key frame before the window, decode forward, keep what is wanted."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        wanted = sampling.TRAIN[clip.sampling](stream.frames, clip.frames, clip.stride, rng)
        rate, base = stream.average_rate, stream.time_base
        if rate is None or base is None:
            raise ValueError(f"{path}: has no frame rate; choose other --videos")
        first = stream.start_time or 0
        container.seek(first + int(wanted[0] / rate / base), stream=stream)
        images: dict[int, np.ndarray] = {}
        needed = set(wanted.tolist())
        for frame in container.decode(stream):
            number = round(((frame.pts or 0) - first) * base * rate)
            if number in needed:
                images[number] = frame.to_ndarray(format="rgb24")
            if number >= wanted[-1]:
                break
    # A frame missing at the end of the file is the one before.
    return [images.get(int(n), images[max(images)]) for n in wanted]


def per_clip(read: Reader, path: Path, clip: ClipConfig, count: int) -> float:
    """CPU seconds per clip of reading a random window, then our own crop and flip."""
    with CpuTime() as used:
        for position in range(count):
            rng = np.random.Generator(np.random.Philox(key=[1, position]))
            frames = read(path, clip, rng)
            box = transforms.random_resized_crop(frames[0].shape[0], frames[0].shape[1], rng)
            flip = bool(rng.random() < 0.5)
            transforms.crop_resize(frames, box, clip.resolution, method="bilinear", flip=flip)
    return used.seconds / count
