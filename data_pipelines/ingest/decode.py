"""One video file to the encoded frames and times of one clip, in a single sequential pass.

What real files do wrong decides the shape of this module:

- Containers disagree with their streams, so completeness is judged by what was decoded
  (`.complete`).
- Some of the times may be wrong, or all behind a point, where a clock was set anew. Order is then
  trusted, and a second pass decides about the times before frames are taken (`.clock`).
- A damaged file may end early without any error, skip frames, or raise in the middle; what can be
  decoded before and behind is intact either way (`.packets`).
- Seeking lands on wrong frames in some containers; it is used only where the index is reliable,
  and what it lands on is checked.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import av
from av.container import InputContainer
from av.error import FFmpegError

from data_pipelines.ingest.audio import AudioError, read_audio
from data_pipelines.ingest.clock import (
    FrameClock,
    Jump,
    Timeline,
    TimesBroken,
    longest_step,
    microseconds,
    repair,
)
from data_pipelines.ingest.complete import Losses, Tally, shortfall
from data_pipelines.ingest.container import (
    FALLBACK_RATE,
    SEEKABLE,
    Note,
    VideoError,
    frame_rate,
    is_spliced,
    open_video,
    origin_us,
    video_stream,
)
from data_pipelines.ingest.encode import FrameEncoder
from data_pipelines.ingest.image import is_image, read_image
from data_pipelines.ingest.options import DecodeOptions
from data_pipelines.ingest.packets import FrameReader, counted_errors
from data_pipelines.ingest.rate import RateSampler
from data_pipelines.records.waveform import Waveform

# The format allows 2 GiB, but a worker holds a record three times while writing it, and training
# reads records whole.
MAX_RECORD_BYTES = 512 * 2**20

# Matroska rounds times to milliseconds; a cut at 2 s must still find the frame at 1.9996 s.
_EDGE_US = 1000
# Of cameras; a higher rate may be none.
_FASTEST = 240
# Sequential decoding up to here costs less than the risk of a seek.
_SEEK_FROM_US = 2_000_000


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """The outcome: fields as in `records.schema.Record`, and notes."""

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
    audio: Waveform | None = None


class _SeekMissed(Exception):
    """A seek did not land on a key frame at or before the wanted time."""


def decode_clip(
    path: str,
    options: DecodeOptions,
    start: float | None = None,
    end: float | None = None,
    tick: Callable[[], None] = lambda: None,
) -> DecodedClip:
    """Decode a video, or the part of it from `start` up to but not including `end`.

    With `options.media` `image`, or `auto` and a file named as an image, an image becomes
    a clip of one frame.

    Args:
      path: file to open.
      options: size, rate and acceptance rules.
      start, end: seconds from the beginning of the video; None for its ends.
      tick: called for every packet, so that the caller sees progress and can stop.

    Raises:
      VideoError: no clip could be made; `stage` says where it failed.
    """
    if is_image(path, options.media):
        if start is not None or end is not None:
            raise VideoError("label", "an image has no times; leave start and end empty")
        return _image(path, options)
    low = round((start or 0.0) * 1e6)
    ends = [round(end * 1e6)] if end is not None else []
    if options.max_seconds is not None:
        ends.append(low + round(options.max_seconds * 1e6))
    high = min(ends, default=None)
    seek, timeline = low >= _SEEK_FROM_US, None
    while True:
        try:
            with counted_errors() as errors, open_video(path) as container:
                whole = _Pass(path, container, errors, options, low, high, timeline)
                clip, origin = whole.run(seek, tick), whole.origin
            if options.audio == "off":
                return clip
            return _with_audio(path, clip, origin, timeline.jumps if timeline else (), tick)
        except _SeekMissed:
            seek = False
        except TimesBroken:
            seek, timeline = False, _survey(path, tick)
        except VideoError:
            raise
        except (FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
            # One odd file must not stop the ingest of a million; it is listed with its reason.
            raise VideoError("decode", f"{type(error).__name__}: {error}") from error


def _survey(path: str, tick: Callable[[], None]) -> Timeline:
    """The times of all frames of a file whose stamps cannot all be right."""
    with counted_errors() as errors, open_video(path) as container:
        stream = video_stream(container)
        reader = FrameReader(container, stream, errors)
        unit = stream.time_base or Fraction(1, 1_000_000)
        stamps: list[int | None] = []
        keys: list[bool] = []
        spoilt: list[bool] = []
        for frame in reader.frames(tick):
            stamp = reader.stamp(frame)
            stamps.append(None if stamp is None else microseconds(stamp, unit))
            keys.append(frame.key_frame)
            spoilt.append(reader.spoilt(frame))
        rate = frame_rate(stream)
        found = repair(stamps, keys, spoilt, is_spliced(container), round(1_000_000 / rate))
    if rate > _FASTEST and rate * unit == 1:
        rate = FALLBACK_RATE  # guessed from stamps that are all alike: the ticks of the clock
    return found or Timeline.counted(len(stamps), rate)


def _image(path: str, options: DecodeOptions) -> DecodedClip:
    encoder = FrameEncoder(None, options.short_side, options.quality, options.storage)
    image = encoder.encode(av.VideoFrame.from_ndarray(read_image(path), format="rgb24"))
    return DecodedClip(
        frames=[image],
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


def _with_audio(
    path: str, clip: DecodedClip, origin: int, jumps: Sequence[Jump], tick: Callable[[], None]
) -> DecodedClip:
    """The clip with the audio of the time its frames cover."""
    size = sum(map(len, clip.frames))
    room = MAX_RECORD_BYTES - size
    try:
        audio, notes = read_audio(path, clip.start_us, clip.end_us, origin, room, jumps, tick)
    except AudioError as error:
        audio, notes = None, (Note(error.kind, str(error)),)
    return replace(clip, audio=audio, notes=(*clip.notes, *notes))


class _Pass:
    """One pass over an open container."""

    def __init__(
        self,
        path: str,
        container: InputContainer,
        errors: Callable[[], int],
        options: DecodeOptions,
        low: int,
        high: int | None,
        timeline: Timeline | None,
    ):
        self._path = path
        self._container = container
        self._stream = video_stream(container)
        self._reader = FrameReader(container, self._stream, errors)
        self._options = options
        self._low = low
        self._high = high
        self._timeline = timeline
        self._rate = (timeline.rate if timeline else None) or frame_rate(self._stream)
        self._nominal_us = round(1_000_000 / self._rate)
        longest_us = longest_step(is_spliced(container), self._nominal_us)
        self._clock = FrameClock(timeline, origin_us(container), longest_us, self._nominal_us)
        self._unit: Fraction | None = None  # of a frame's times, in seconds
        self._tally = Tally()
        end_us = None if high is None else high - _EDGE_US
        self._losses = Losses(self._tally, low - _EDGE_US, end_us)

    @property
    def origin(self) -> int:
        """Time 0 of the clip's clock, in microseconds on the clock of the file's streams."""
        return 0 if origin_us(self._container) is None else self._clock.origin_us or 0

    def run(self, seek: bool, tick: Callable[[], None]) -> DecodedClip:
        """Decode, then judge what came out."""
        sought = seek and self._seek()
        options, tally = self._options, self._tally
        aspect = self._stream.sample_aspect_ratio if options.pixels == "display" else None
        encoder = FrameEncoder(aspect, options.short_side, options.quality, options.storage)
        sampler = RateSampler(options.fps, self._rate)
        frames: list[bytes] = []
        times: list[int] = []
        size = 0
        for time_us, frame in sampler.sample(self._inside(sought, tick)):
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
        if sought and not frames:
            raise _SeekMissed  # where a clock was set anew a time may come twice
        tally.error, tally.discarded = self._reader.error, self._reader.discarded
        tally.stored_end_us = self._clock.stored_us + self._nominal_us
        missing = shortfall(
            self._path,
            self._container,
            self._stream,
            tally,
            self._clock.origin_us or 0,
            self._low,
            self._high,
            sought,
            tick,
        )
        self._accept(frames, missing)
        end_us = tally.end_us if self._high is None else min(self._high, tally.end_us)
        return DecodedClip(
            frames=frames,
            timestamps_us=times,
            fps=self._stored_fps(times, sampler.fps),
            height=encoder.height,
            width=encoder.width,
            source_height=encoder.source_height,
            source_width=encoder.source_width,
            start_us=self._low,
            end_us=max(end_us, times[-1]),
            notes=self._notes(missing),
        )

    def _seek(self) -> bool:
        """Go to the key frame before the start; False where that cannot be relied on."""
        time_base = self._stream.time_base
        if (
            self._container.format.name not in SEEKABLE
            or self._clock.origin_us is None
            or not time_base
            or self._timeline is not None
        ):
            return False
        target = int((self._low + self._clock.origin_us) / (time_base * 1_000_000))
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except FFmpegError as error:
            raise _SeekMissed from error
        return True

    def _frames(self, tick: Callable[[], None]) -> Iterator[av.VideoFrame]:
        return self._reader.frames(tick)

    def _inside(
        self, sought: bool, tick: Callable[[], None]
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """The good frames of the cut with their times; counts everything else."""
        tally, reader = self._tally, self._reader
        for frame in self._frames(tick):
            stamp_us = self._stamp(frame)
            spoilt = reader.spoilt(frame)
            self._losses.add(*reader.lost_before(frame))
            time_us = self._clock.time(stamp_us, spoilt)
            if spoilt:
                tally.corrupt += 1
                self._losses.spoil(time_us)
                continue
            self._losses.settle(self._clock.last_us, time_us, self._clock.step_us)
            self._clock.go_on(time_us)
            if sought and tally.good == 0 and not (frame.key_frame and time_us <= self._low):
                raise _SeekMissed
            tally.good += 1
            tally.end_us = time_us + self._duration(frame)
            if self._high is not None and time_us >= self._high - _EDGE_US:
                tally.reached_end = True
                return
            if time_us < self._low - _EDGE_US:
                continue
            tally.inside += 1
            yield time_us, frame
        self._losses.add(*reader.lost_before(None))
        self._losses.settle(self._clock.last_us, None, self._clock.step_us)
        self._hold_last()

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        """When a frame is shown by its stamp, in microseconds; to be asked once per frame."""
        if self._unit is None:
            self._unit = frame.time_base or self._stream.time_base
        stamp, unit = self._reader.stamp(frame), self._unit
        if self._clock.origin_us is None and unit and self._reader.begins is not None:
            self._clock.origin_us = microseconds(self._reader.begins, unit)
        return microseconds(stamp, unit) if unit and stamp is not None else None

    def _duration(self, frame: av.VideoFrame) -> int:
        """How long a frame is shown: the last of a screen recording may stay for seconds."""
        duration = self._reader.duration(frame)
        if self._timeline is not None and self._timeline.jumps:
            return self._clock.step_us  # the rate of the header counts the time jumped over
        if self._timeline is not None or not duration or self._unit is None:
            return self._nominal_us
        return max(self._nominal_us, microseconds(duration, self._unit))

    def _hold_last(self) -> None:
        """Where an AVI says of every frame how often it is repeated, its rate is of no frame."""
        least_us = self._clock.least_us
        if self._container.format.name == "avi" and least_us is not None:
            held_us = least_us - self._nominal_us
            self._tally.end_us += held_us if held_us > _EDGE_US else 0

    def _accept(self, frames: list[bytes], missing: str) -> None:
        """Raise VideoError unless the frames make a clip."""
        tally, options = self._tally, self._options
        enough = len(frames) >= max(1, options.min_frames)
        if tally.error and not enough:
            raise VideoError("decode", f"{tally.error} after {tally.good} frames")
        if tally.good == 0:
            problem = f"all {tally.corrupt} frames are corrupt" if tally.corrupt else "no frames"
            raise VideoError("empty", f"the video stream has {problem}")
        if not enough and tally.damaged:
            raise VideoError(
                "decode",
                f"{len(frames)} frames and {tally.damaged} damaged ones, at least "
                f"{options.min_frames} needed",
            )
        if not frames:
            until = "its end" if self._high is None else f"{self._high / 1e6:g} s"
            raise VideoError(
                "short",
                f"no frame from {self._low / 1e6:g} s to {until}; "
                f"the video ends at {tally.end_us / 1e6:.2f} s",
            )
        if not enough:
            raise VideoError("short", f"{len(frames)} frames, at least {options.min_frames} needed")
        if missing and options.partial == "reject":
            raise VideoError("decode", f"only part of it could be decoded: {missing}")

    def _notes(self, missing: str) -> tuple[Note, ...]:
        notes = []
        if missing:
            notes.append(Note("partial", missing))
        if lost := self._tally.remark():
            notes.append(Note("corrupt", lost))
        if self._timeline is not None and (remark := self._timeline.remark()):
            notes.append(Note("timestamps", remark))
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
        if (self._timeline is not None and self._timeline.rate) or len(times) < 2:
            return nominal
        span = times[-1] - times[0]
        measured = (len(times) - 1) * 1e6 / span
        if self._tally.lost:  # the time of what is missing is not a matter of the rate
            steps = sorted(b - a for a, b in itertools.pairwise(times))
            measured = 1e6 / steps[len(steps) // 2]
        # Sampling moves the first and last frame by up to one frame of the source.
        tolerance = 0.1 + 1e6 / float(self._rate) / span
        return nominal if abs(measured / nominal - 1) <= tolerance else round(measured, 3)
