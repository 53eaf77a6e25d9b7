"""The audio of one clip: 16 kHz mono, on the clock of its frames.

A pass of its own over the audio stream, after the frames: streams are interleaved loosely, so one
pass that stops at the last frame would miss the audio of the last moments, and what goes wrong
with the audio must not touch the frames.
"""

from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from data_pipelines.ingest.clock import Jump
from data_pipelines.ingest.container import SEEKABLE, Note, VideoError, open_video
from data_pipelines.records.waveform import Waveform

SAMPLE_RATE = 16_000

# Times of packets are rounded, in Matroska to milliseconds; only a larger jump is a gap.
_GAP_US = 60_000
# Audio and images of a recording do not end at the same moment.
_SPLICE_US = 500_000
# Decoders need some packets before their output is right.
_LEAD_US = 500_000
_SEEK_FROM_US = 2_000_000


class AudioError(ValueError):
    """A clip that remains without audio.

    Attributes:
      kind: `silent` where the file has none, `audio` where it cannot be decoded.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class _SeekMissed(Exception):
    """A seek landed behind the wanted time."""


def read_audio(
    path: str,
    start_us: int,
    end_us: int,
    origin_us: int,
    max_bytes: int,
    jumps: Sequence[Jump] = (),
    tick: Callable[[], None] = lambda: None,
) -> tuple[Waveform, tuple[Note, ...]]:
    """Decode, mix down and resample the audio of a time window.

    Gaps in the audio, and the time before it begins, become silence, so that every sample is at
    its time; where the audio ends early the result is short.

    Args:
      path: file to open.
      start_us, end_us: window in microseconds on the clock of the clip.
      origin_us: time 0 of that clock on the clock of the file's streams.
      max_bytes: refuse more audio than this.
      jumps: where the clock of the file was set anew, by its video.
      tick: called for every packet, so that the caller sees progress and can stop.

    Returns:
      The audio at 16 kHz, and what is worth recording about it.

    Raises:
      AudioError: there is no audio stream, or nothing of it in the window can be decoded.
      VideoError: stage `long`, more than `max_bytes`.
    """
    total = round((end_us - start_us) * SAMPLE_RATE / 1e6)
    if 2 * total > max_bytes:
        raise VideoError(
            "long",
            f"the audio of {(end_us - start_us) / 1e6:.0f} s does not fit into the record; cut it "
            "with start and end columns or --max-seconds",
        )
    seek = start_us >= _SEEK_FROM_US
    while True:
        try:
            with open_video(path) as container:
                stream = container.streams.best("audio")
                if not isinstance(stream, AudioStream):
                    raise AudioError("silent", "has no audio stream")
                if stream.codec_context is None:
                    raise AudioError("audio", "there is no decoder for the audio stream")
                reading = _Reading(container, stream, start_us, end_us, origin_us, jumps)
                reading.run(seek, tick)
                return reading.result(total)
        except _SeekMissed:
            seek = False
        except (AudioError, VideoError):
            raise
        except (FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
            raise AudioError(
                "audio", f"the audio was left out: {type(error).__name__}: {error}"
            ) from error


class _Reading:
    """One pass over the audio stream."""

    def __init__(
        self,
        container: InputContainer,
        stream: AudioStream,
        start_us: int,
        end_us: int,
        origin_us: int,
        jumps: Sequence[Jump],
    ):
        self._container, self._stream = container, stream
        self._jumps, self._shift = list(jumps), 0
        self._raw_us = 0.0  # where the audio before ended, on the clock of the file
        self._start_us, self._end_us, self._origin_us = start_us, end_us, origin_us
        # Runs of gapless audio: (time of the first sample, chunks at 16 kHz).
        self._runs: list[tuple[float, list[np.ndarray]]] = []
        self._resampler: AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None
        self._next_us = 0.0
        self._heard_us = 0.0  # until where there is audio
        self._missing_us = 0.0
        self._damaged = 0
        self._error = ""

    def run(self, seek: bool, tick: Callable[[], None]) -> None:
        sought = seek and self._seek()
        first = True
        for frame in self._frames(tick):
            if not frame.samples or not frame.sample_rate:
                continue
            time_us = self._next_us
            if frame.pts is not None and frame.time_base is not None:
                raw_us = float(frame.pts * frame.time_base * 1_000_000)
                self._follow(raw_us)
                self._raw_us = raw_us + frame.samples * 1e6 / frame.sample_rate
                time_us = raw_us + self._shift - self._origin_us
            if sought and first and time_us > self._start_us:
                raise _SeekMissed
            first = False
            if time_us >= self._end_us:
                break
            self._add(frame, time_us)
        self._flush()

    def _seek(self) -> bool:
        if self._container.format.name not in SEEKABLE or not self._stream.time_base:
            return False
        wanted = self._start_us - _LEAD_US + self._origin_us
        target = int(wanted / (self._stream.time_base * 1_000_000))
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except FFmpegError as error:
            raise _SeekMissed from error
        return True

    def _follow(self, raw_us: float) -> None:
        """Go on where the clock of the file was set anew, as the video does."""
        step = raw_us - self._raw_us
        for number, jump in enumerate(self._jumps):
            if abs(step - (jump.after - jump.before)) <= _SPLICE_US and abs(step) > _GAP_US:
                self._shift = jump.shift
                del self._jumps[: number + 1]
                return

    def _frames(self, tick: Callable[[], None]) -> Iterator[av.AudioFrame]:
        packets = self._container.demux(self._stream)
        packet = None
        while not self._error:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
            except FFmpegError as error:
                self._error = error.strerror or str(error)
                packet = None  # what the decoder holds back is intact
            tick()
            try:
                decoded = self._stream.decode(packet)
            except FFmpegError:
                # A broken packet costs its own milliseconds; the gap becomes silence.
                self._damaged += 1
                continue
            for frame in decoded:
                if frame.is_corrupt:
                    self._damaged += 1
                else:
                    yield frame

    def _add(self, frame: av.AudioFrame, time_us: float) -> None:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        gap = kind != self._format or abs(time_us - self._next_us) > _GAP_US
        begin_us = time_us if gap else self._next_us
        self._next_us = begin_us + frame.samples * 1e6 / frame.sample_rate
        if self._next_us < self._start_us - _LEAD_US:
            return  # long before the window
        if gap:
            if self._runs and begin_us > self._start_us:
                self._missing_us += max(0.0, begin_us - self._heard_us)
            self._flush()
            self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self._format = kind
            self._runs.append((begin_us, []))
        # Positions are counted here; times that jitter would make the resampler stretch.
        frame.pts = None
        self._append(frame)
        self._heard_us = self._next_us

    def _append(self, frame: av.AudioFrame | None) -> None:
        if self._resampler is not None:
            # What is in the wanted form already comes back as it is, even the None at the end.
            self._runs[-1][1].extend(
                out.to_ndarray().reshape(-1)
                for out in self._resampler.resample(frame)
                if out is not None
            )

    def _flush(self) -> None:
        if self._resampler is not None:
            self._append(None)
        self._resampler = None

    def result(self, total: int) -> tuple[Waveform, tuple[Note, ...]]:
        """The audio as `total` samples at most; AudioError where there is none of it."""
        samples = np.zeros(total, np.int16)
        filled = 0
        for time_us, chunks in self._runs:
            if not chunks:
                continue
            run = np.concatenate(chunks)
            at = round((time_us - self._start_us) * SAMPLE_RATE / 1e6)
            low, high = max(0, at), min(total, at + len(run))
            if low < high:
                samples[low:high] = run[low - at : high - at]
                filled = max(filled, high)
        problem = self._problem()
        if not filled and problem:
            raise AudioError("audio", f"no audio at the time of the clip: {problem}")
        if not filled:
            raise AudioError("silent", "the audio stream has nothing at the time of the clip")
        notes = [Note("audio", problem)] if problem else []
        streams = len(self._container.streams.audio)
        if streams > 1:
            notes.append(
                Note("streams", f"{streams} audio streams; took stream {self._stream.index}")
            )
        data = samples[:filled].astype("<i2").tobytes()
        return Waveform(data, SAMPLE_RATE, self._start_us), tuple(notes)

    def _problem(self) -> str:
        if self._error:
            return f"the audio stops early: {self._error}"
        found = [f"{self._damaged} packets of audio are damaged"] if self._damaged else []
        if self._missing_us:
            found.append(f"{self._missing_us / 1e6:.2f} s of audio are missing")
        return f"{' and '.join(found)}; silence took their place" if found else ""
