"""One video file to the encoded frames and times of one clip, in a single sequential pass.

What real files do wrong decides the shape of this module:

- Containers disagree with their streams, so completeness is judged by what was decoded.
- AVI with B-frames delivers frames in display order with times that jump back and forth; order is
  then trusted and times are counted, never sorted.
- A damaged file may end early without any error, or raise in the middle; what came before is
  intact either way.
- Seeking lands on wrong frames in some containers; it is used only where the index is reliable,
  and what it lands on is checked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import av
from av.container import InputContainer
from av.error import FFmpegError

from data_pipelines.ingest.audio import AudioError, read_audio
from data_pipelines.ingest.container import (
    SEEKABLE,
    Note,
    VideoError,
    announced_us,
    frame_rate,
    open_video,
    origin_us,
    video_stream,
)
from data_pipelines.ingest.image import is_image, read_image
from data_pipelines.ingest.picture import FrameEncoder
from data_pipelines.ingest.rate import RateSampler
from data_pipelines.waveform import Audio

# The format allows 2 GiB, but a worker holds a record three times while writing it, and training
# reads records whole.
MAX_RECORD_BYTES = 512 * 2**20

# Below this share of the announced frames or duration a video counts as partial.
_COMPLETE = 0.9
# Matroska rounds times to milliseconds; a cut at 2 s must still find the frame at 1.9996 s.
_EDGE_US = 1000
# Sequential decoding up to here costs less than the risk of a seek.
_SEEK_FROM_US = 2_000_000


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What to make of a video; see :class:`data_pipelines.ingest.options.Options`."""

    short_side: int = 256
    pixels: str = "stored"
    storage: str = "jpeg"
    quality: int = 90
    fps: float | None = None
    max_seconds: float | None = None
    min_frames: int = 2
    partial: str = "accept"
    audio: str = "off"
    media: str = "video"


@dataclass(frozen=True, slots=True)
class Clip:
    """The outcome: fields as in :class:`data_pipelines.schema.Record`, and notes."""

    frames: list[bytes]
    timestamps_us: list[int]
    fps: float
    height: int
    width: int
    source_height: int
    source_width: int
    start_us: int
    end_us: int
    notes: tuple[Note, ...]
    media_type: str = "video"
    audio: Audio | None = None


class _SeekMissed(Exception):
    """A seek did not land on a key frame at or before the wanted time."""


class _TimesBroken(Exception):
    """Frame times are missing or do not increase."""


@dataclass(slots=True)
class _Tally:
    """What one pass over a file has seen so far."""

    good: int = 0
    corrupt: int = 0
    inside: int = 0  # good frames between start and end
    damaged: int = 0  # corrupt frames between start and end
    discarded: int = 0
    end_us: int = 0
    reached_end: bool = False
    error: str = ""


def decode_clip(
    path: str,
    options: DecodeOptions,
    start: float | None = None,
    end: float | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Clip:
    """Decode a video, or the part of it from ``start`` up to but not including ``end``.

    With ``options.media`` ``image``, or ``auto`` and a file named as a picture, a picture becomes
    a clip of one frame.

    Args:
      path: file to open.
      options: size, rate and acceptance rules.
      start, end: seconds from the beginning of the video; None for its ends.
      tick: called for every packet, so that the caller sees progress and can stop.

    Raises:
      VideoError: no clip could be made; ``stage`` says where it failed.
    """
    if is_image(path, options.media):
        if start is not None or end is not None:
            raise VideoError("label", "a picture has no times; leave start and end empty")
        return _picture(path, options)
    low = round((start or 0.0) * 1e6)
    ends = [round(end * 1e6)] if end is not None else []
    if options.max_seconds is not None:
        ends.append(low + round(options.max_seconds * 1e6))
    high = min(ends, default=None)
    seek, by_index = low >= _SEEK_FROM_US, False
    while True:
        try:
            with open_video(path) as container:
                whole = _Pass(container, options, low, high, by_index)
                clip, origin = whole.run(seek, tick), whole.origin
            return clip if options.audio == "off" else _with_audio(path, clip, origin, tick)
        except _SeekMissed:
            seek = False
        except _TimesBroken:
            seek, by_index = False, True
        except VideoError:
            raise
        except (FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
            # One odd file must not stop the ingest of a million; it is listed with its reason.
            raise VideoError("decode", f"{type(error).__name__}: {error}") from error


def _picture(path: str, options: DecodeOptions) -> Clip:
    encoder = FrameEncoder(None, options.short_side, options.quality, options.storage)
    picture = encoder.encode(av.VideoFrame.from_ndarray(read_image(path), format="rgb24"))
    return Clip(
        frames=[picture],
        timestamps_us=[0],
        fps=1.0,
        height=encoder.height,
        width=encoder.width,
        source_height=encoder.source_height,
        source_width=encoder.source_width,
        start_us=0,
        end_us=0,
        notes=(),
        media_type="image",
    )


def _with_audio(path: str, clip: Clip, origin: int, tick: Callable[[], None]) -> Clip:
    """The clip with the sound of the time its frames cover."""
    size = sum(map(len, clip.frames))
    room = MAX_RECORD_BYTES - size
    try:
        audio, notes = read_audio(path, clip.start_us, clip.end_us, origin, room, tick)
    except AudioError as error:
        audio, notes = None, (Note(error.kind, str(error)),)
    return replace(clip, audio=audio, notes=(*clip.notes, *notes))


class _Pass:
    """One pass over an open container."""

    def __init__(
        self,
        container: InputContainer,
        options: DecodeOptions,
        low: int,
        high: int | None,
        by_index: bool,
    ):
        self._container = container
        self._stream = video_stream(container)
        self._options = options
        self._low = low
        self._high = high
        self._by_index = by_index
        self._rate = frame_rate(self._stream)
        self._origin_us = origin_us(container)
        self._nominal_us = round(1_000_000 / self._rate)
        self._last_us: int | None = None
        self._unit: Fraction | None = None  # of a frame's times, in seconds
        self._tally = _Tally()

    @property
    def origin(self) -> int:
        """Time 0 of the clip's clock, in microseconds on the clock of the file's streams."""
        return 0 if origin_us(self._container) is None else self._origin_us or 0

    def run(self, seek: bool, tick: Callable[[], None]) -> Clip:
        """Decode, then judge what came out."""
        sought = seek and self._seek()
        options, tally = self._options, self._tally
        aspect = self._stream.sample_aspect_ratio if options.pixels == "display" else None
        encoder = FrameEncoder(aspect, options.short_side, options.quality, options.storage)
        sampler = RateSampler(options.fps, self._rate)
        frames: list[bytes] = []
        times: list[int] = []
        size = 0
        for frame in self._frames(tick):
            time_us = self._time(frame)
            if frame.is_corrupt:
                tally.corrupt += 1
                tally.damaged += time_us >= self._low - _EDGE_US
                continue
            if sought and tally.good == 0 and not (frame.key_frame and time_us <= self._low):
                raise _SeekMissed
            tally.good += 1
            tally.end_us = time_us + self._duration(frame)
            if self._high is not None and time_us >= self._high - _EDGE_US:
                tally.reached_end = True
                break
            if time_us < self._low - _EDGE_US:
                continue
            tally.inside += 1
            if not sampler.takes(time_us):
                continue
            try:
                frames.append(encoder.encode(frame))
            except FFmpegError as error:
                raise VideoError(
                    "decode", f"cannot convert {frame.format.name} frames: {error.strerror}"
                ) from error
            times.append(time_us)
            size += len(frames[-1])
            if size > MAX_RECORD_BYTES:
                raise VideoError(
                    "long",
                    f"more than {MAX_RECORD_BYTES >> 20} MiB of {options.storage.upper()} after "
                    f"{(time_us - self._low) / 1e6:.0f} s; cut it with start and end columns or "
                    "--max-seconds, or lower --fps or --short-side",
                )
        shortfall = self._shortfall(sought)
        self._accept(frames, shortfall)
        end_us = tally.end_us if self._high is None else min(self._high, tally.end_us)
        return Clip(
            frames=frames,
            timestamps_us=times,
            fps=self._stored_fps(times, sampler.fps),
            height=encoder.height,
            width=encoder.width,
            source_height=encoder.source_height,
            source_width=encoder.source_width,
            start_us=self._low,
            end_us=max(end_us, times[-1]),
            notes=self._notes(shortfall),
        )

    def _seek(self) -> bool:
        """Go to the key frame before the start; False where that cannot be relied on."""
        time_base = self._stream.time_base
        if (
            self._container.format.name not in SEEKABLE
            or self._origin_us is None
            or not time_base
            or self._by_index
        ):
            return False
        target = int((self._low + self._origin_us) / (time_base * 1_000_000))
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except FFmpegError as error:
            raise _SeekMissed from error
        return True

    def _frames(self, tick: Callable[[], None]) -> Iterator[av.VideoFrame]:
        """Decoded frames up to the end or the first error, which is kept in the tally."""
        tally = self._tally
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError as error:
                tally.error = error.strerror or str(error)
                return
            if packet is None:
                return
            tick()
            tally.discarded += packet.is_discard
            try:
                decoded = packet.decode()
            except FFmpegError as error:
                tally.error = error.strerror or str(error)
                # A recording that starts between key frames fails until the first of them.
                if tally.good:
                    return
                continue
            if decoded and not tally.good:
                tally.error = ""
            yield from decoded

    def _time(self, frame: av.VideoFrame) -> int:
        """Microseconds from the start of the video; raises _TimesBroken."""
        if self._by_index:
            return round((self._tally.good + self._tally.corrupt) * 1_000_000 / self._rate)
        if self._unit is None:
            self._unit = frame.time_base
        if frame.pts is None or self._unit is None:
            raise _TimesBroken
        time_us = _microseconds(frame.pts, self._unit)
        if self._last_us is not None and time_us <= self._last_us:
            raise _TimesBroken
        if self._last_us is None and (self._origin_us is None or time_us < self._origin_us):
            self._origin_us = time_us
        self._last_us = time_us
        return time_us - (self._origin_us or 0)

    def _duration(self, frame: av.VideoFrame) -> int:
        """How long a frame is shown: the last of a screen recording may stay for seconds."""
        if self._by_index or not frame.duration or self._unit is None:
            return self._nominal_us
        return max(self._nominal_us, _microseconds(frame.duration, self._unit))

    def _shortfall(self, sought: bool) -> str:
        """What is missing of what the file announces, or an empty text."""
        tally, stream = self._tally, self._stream
        if tally.error:
            return f"decoding stopped after {tally.good} frames: {tally.error}"
        # Demuxers skip over damage without an error. Few frames alone prove nothing, the rate may
        # vary; few frames and a damaged one among them do.
        until = tally.end_us if self._high is None else min(tally.end_us, self._high)
        usual = (until - self._low) * self._rate / 1_000_000
        if tally.damaged and tally.inside < _COMPLETE * usual:
            return f"{tally.inside} of about {round(usual)} frames, damaged in the middle"
        if tally.reached_end:
            return ""
        # Packets before an edit point are counted in the header but never shown.
        announced = stream.frames - tally.discarded
        if not sought and tally.good < _COMPLETE * announced:
            return f"{tally.good} of {announced} frames"
        end_us = announced_us(self._container, stream, self._origin_us or 0)
        if end_us is None:
            return ""
        wanted = min(end_us, self._high or end_us) - self._low
        got = tally.end_us - self._low
        if got < _COMPLETE * wanted:
            return f"{max(0, got) / 1e6:.2f} of {wanted / 1e6:.2f} s"
        return ""

    def _accept(self, frames: list[bytes], shortfall: str) -> None:
        """Raise VideoError unless the frames make a clip."""
        tally, options = self._tally, self._options
        enough = len(frames) >= max(1, options.min_frames)
        if tally.error and not enough:
            raise VideoError("decode", f"{tally.error} after {tally.good} frames")
        if tally.good == 0:
            problem = f"all {tally.corrupt} frames are corrupt" if tally.corrupt else "no frames"
            raise VideoError("empty", f"the video stream has {problem}")
        if not frames:
            until = "its end" if self._high is None else f"{self._high / 1e6:g} s"
            raise VideoError(
                "short",
                f"no frame from {self._low / 1e6:g} s to {until}; "
                f"the video ends at {tally.end_us / 1e6:.2f} s",
            )
        if not enough:
            raise VideoError("short", f"{len(frames)} frames, at least {options.min_frames} needed")
        if shortfall and options.partial == "reject":
            raise VideoError("decode", f"only part of it could be decoded: {shortfall}")

    def _notes(self, shortfall: str) -> tuple[Note, ...]:
        notes = []
        if shortfall:
            notes.append(Note("partial", shortfall))
        if self._tally.damaged:
            notes.append(Note("corrupt", f"left out {self._tally.damaged} damaged frames"))
        if self._by_index:
            notes.append(
                Note("timestamps", f"frame times do not increase; counted at {self._rate} per s")
            )
        videos = self._container.streams.video
        if len(videos) > 1:
            context = self._stream.codec_context
            notes.append(
                Note(
                    "streams",
                    f"{len(videos)} video streams; took stream {self._stream.index} "
                    f"({context.width}x{context.height})",
                )
            )
        return tuple(notes)

    def _stored_fps(self, times: list[int], nominal: float) -> float:
        """The announced rate, unless the frame times contradict it."""
        if self._by_index or len(times) < 2:
            return nominal
        span = times[-1] - times[0]
        measured = (len(times) - 1) * 1e6 / span
        # Sampling moves the first and last frame by up to one frame of the source.
        tolerance = 0.1 + 1e6 / float(self._rate) / span
        return nominal if abs(measured / nominal - 1) <= tolerance else round(measured, 3)


def _microseconds(ticks: int, unit: Fraction) -> int:
    """Rounded half to even, as `round` does; a Fraction for every frame costs 3 % of the ingest."""
    whole, rest = divmod(ticks * unit.numerator * 1_000_000, unit.denominator)
    return whole + (2 * rest > unit.denominator - whole % 2)
