"""The audio of an example: which part of its record's audio, in what form.

The reference (InternVideo2 stage 2) takes the audio of the whole clip, and a random window of it
where it is longer than the model hears; that is the window `random`. It does not follow the sampled
frames: where these span the clip (sampling `segments`, `uniform`) it need not. The window `frames`
begins at the time of the first sampled frame, for short clips out of long records. An evaluation
pass, which draws nothing, takes the beginning of the audio instead of a random window.

Samples stay 16-bit integers up to the device, as pixels stay bytes; the spectrogram is made there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.records.waveform import DMVR_SAMPLE_RATE, Waveform
from data_pipelines.stream.parts.base import Part, Reading, Rows, Spec

SAMPLE_RATE = 16_000
WINDOWS = ("random", "frames")
_COUNTER = [0, 0, 0, 2]


@dataclasses.dataclass(frozen=True)
class Audio(Part):
    """`audio` (samples,) int16 of full scale 32768, and `audio_valid` () int32, how many of them
    from the beginning are audio: 0 for a record without.

    Attributes:
      window: one of WINDOWS.
    """

    seconds: float
    window: str = "random"

    def spec(self) -> Spec:
        """See the class."""
        samples = length(self.seconds)
        return {"audio": ((samples,), np.dtype(np.int16)), "audio_valid": ((), np.dtype(np.int32))}

    def identity(self) -> Mapping[str, Any]:
        """Samples and window."""
        return {"audio": {"samples": length(self.seconds), "window": self.window}}

    def fill(self, reading: Reading, out: Rows) -> None:
        """See `Part.fill`."""
        audio = reading.dataset.audio(reading.index, reading.record)
        if audio is None:
            out["audio"][:], out["audio_valid"][:] = 0, 0
            return
        check_rate(audio, reading.address)
        rows = len(out["audio"])
        for row in range(rows):
            start_us = None
            if self.window == "frames" and reading.frames is not None:
                first = int(reading.frames[reading.choice(row, rows)].flat[0])
                start_us = int(reading.record.timestamps_us[first])
            rng = reading.generator(row, _COUNTER)
            out["audio_valid"][row] = cut(audio, start_us, rng, out["audio"][row])


def check(seconds: float, window: str) -> None:
    """ValueError for settings that cannot work."""
    if not 0 <= seconds < 3600:
        raise ValueError(
            f"config.data.audio_seconds = {seconds}; expected 0 (no audio) or the seconds of audio "
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


def check_rate(audio: Waveform, where: str) -> None:
    """ValueError for audio of another rate than ours; `where` names the record."""
    if audio.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"{where}: its audio has {audio.sample_rate} samples per second, config.data."
            f"audio_seconds takes {SAMPLE_RATE} only ({DMVR_SAMPLE_RATE} is assumed where a DMVR "
            "record names no rate); ingest the videos with --audio pcm16, or write the DMVR "
            f"records again at {SAMPLE_RATE} with `audio/sample_rate` in them"
        )


def cut(
    audio: Waveform, start_us: int | None, rng: np.random.Generator | None, out: np.ndarray
) -> int:
    """Writes one window of the audio.

    Args:
      audio: 16 kHz.
      start_us: its beginning; None: a random one where there is more audio than fits and `rng`
        to draw it, else the beginning of the audio.
      out: (samples,) int16, full scale 32768, all of it written, zero behind the audio.

    Returns:
      How many samples from the beginning on are audio.
    """
    if start_us is None:
        spare = len(audio) - len(out)
        first = int(rng.integers(spare + 1)) if spare > 0 and rng is not None else 0
        start_us = audio.start_us + _microseconds(first)
    end_us = start_us + _microseconds(len(out))
    samples, valid = audio.window(start_us, end_us, len(out), dtype=np.int16)
    out[:] = samples
    return valid


def _microseconds(samples: int) -> int:
    return round(samples * 1_000_000 / SAMPLE_RATE)
