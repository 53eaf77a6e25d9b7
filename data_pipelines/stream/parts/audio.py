"""The sound that a training clip gets: which part of its record's sound, in what form.

The reference (InternVideo2 stage 2) takes the sound of the whole clip, and a random window of it
where it is longer than the model hears; that is the window `random`. It does not follow the sampled
frames: where these span the clip (sampling `segments`, `uniform`) it need not. The window `frames`
begins at the time of the first sampled frame, for short clips out of long records.

Samples stay 16-bit integers up to the device, as pixels stay bytes; the spectrogram is made there.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.records.schema import Record
from data_pipelines.records.waveform import DMVR_SAMPLE_RATE, Audio

SAMPLE_RATE = 16_000
WINDOWS = ("random", "frames")


def check(seconds: float, window: str) -> None:
    """ValueError for settings that cannot work."""
    if not 0 <= seconds < 3600:
        raise ValueError(
            f"config.data.audio_seconds = {seconds}; expected 0 (no sound) or the seconds of sound "
            "of one example, below 3600"
        )
    if 0 < seconds < 1 / SAMPLE_RATE:
        raise ValueError(f"config.data.audio_seconds = {seconds} is shorter than one sample")
    if window not in WINDOWS:
        raise ValueError(
            f"unknown config.data.audio_window {window!r}; known: {', '.join(WINDOWS)}"
        )


def length(seconds: float) -> int:
    """Samples of a window."""
    return round(seconds * SAMPLE_RATE)


def check_rate(audio: Audio, where: str) -> None:
    """ValueError for sound of another rate than ours; `where` names the record."""
    if audio.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"{where}: its sound has {audio.sample_rate} samples per second, config.data."
            f"audio_seconds takes {SAMPLE_RATE} only ({DMVR_SAMPLE_RATE} is assumed where a DMVR "
            "record names no rate); ingest the videos with --audio pcm16, or write the DMVR "
            f"records again at {SAMPLE_RATE} with `audio/sample_rate` in them"
        )


def start_of(record: Record, first_frame: int, window: str) -> int | None:
    """Where the window begins, microseconds; None where it is drawn for every example."""
    return int(record.timestamps_us[first_frame]) if window == "frames" else None


def cut(audio: Audio, start_us: int | None, rng: np.random.Generator, out: np.ndarray) -> int:
    """Writes one window of the sound.

    Args:
      audio: 16 kHz.
      start_us: its beginning; None: a random one where there is more sound than fits, else the
        beginning of the sound.
      out: (samples,) int16, full scale 32768, all of it written, zero behind the sound.

    Returns:
      How many samples from the beginning on are sound.
    """
    if start_us is None:
        spare = len(audio) - len(out)
        first = int(rng.integers(spare + 1)) if spare > 0 else 0
        start_us = audio.start_us + _microseconds(first)
    end_us = start_us + _microseconds(len(out))
    samples, valid = audio.window(start_us, end_us, len(out), dtype=np.int16)
    out[:] = samples
    return valid


def _microseconds(samples: int) -> int:
    return round(samples * 1_000_000 / SAMPLE_RATE)
