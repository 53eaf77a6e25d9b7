"""Videos with audio, for the tests of the audio."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.data_pipelines.ingest.clips import picture

BEEP_US = (1_000_000, 1_250_000)


def beep(seconds: float, rate: int, channels: int = 2) -> np.ndarray:
    """Silence (channels, n) float32 with a tone of 1 kHz in ``BEEP_US``."""
    t = np.arange(round(seconds * rate)) / rate
    inside = (t >= BEEP_US[0] / 1e6) & (t < BEEP_US[1] / 1e6)
    mono = np.where(inside, 0.5 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.float32)
    return np.repeat(mono[None], channels, axis=0)


def make_audio_file(
    path: str | os.PathLike[str],
    samples: np.ndarray,
    rate: int,
    *,
    frames: int = 30,
    fps: int = 10,
    codec: str = "aac",
    delay_us: int = 0,
    gap: tuple[int, int] | None = None,
    shift_us: int = 0,
) -> Path:
    """A video of ``picture`` frames with audio.

    ``delay_us``: when the audio begins; ``shift_us``: added to all times of the file; ``gap``:
    frames of 1024 samples that are left out.
    """
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with av.open(os.fspath(path), "w") as file:
        video = file.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = file.add_stream(codec, rate=rate, layout=layout)
        kind = audio.codec_context.format.name
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i))
            frame.pts = i * 1_000_000 // fps + shift_us
            frame.time_base = Fraction(1, 1_000_000)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        for number, low in enumerate(range(0, samples.shape[1], 1024)):
            if gap and gap[0] <= number < gap[1]:
                continue
            part = samples[:, low : low + 1024]
            if kind == "s16":  # packed
                part = np.rint(part.T.reshape(1, -1) * 32767).astype(np.int16)
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), kind, layout)
            sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
            sound.pts = low + (delay_us + shift_us) * rate // 1_000_000
            file.mux(audio.encode(sound))
        file.mux(audio.encode())
    return Path(path)
