"""Opening a video file and reading what its header claims."""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

# Containers in which seeking lands where it should.
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")

_MP4 = "mov,mp4,"
FALLBACK_RATE = Fraction(25)

# Metadata that is no UTF-8 becomes lone surrogates. From version 19 on PyAV does that by itself;
# earlier ones refuse the file unless told.
_OLD = int(av.__version__.partition(".")[0]) < 19
_METADATA: dict[str, Any] = {"metadata_errors": "surrogateescape"} if _OLD else {}


class VideoError(ValueError):
    """A file that gives no usable clip.

    Attributes:
      stage: `open`, `decode`, `empty`, `short` or `long`; `label` where the file is
        fine and what is said about it is not.
    """

    def __init__(self, stage: str, message: str):
        super().__init__(message)
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Note:
    """Something about an accepted clip worth recording.

    Attributes:
      kind: `partial` (a part of a damaged file), `corrupt` (frames left out or missing),
        `timestamps` (times counted or repaired, not read), `streams` (there was a choice),
        `silent` (audio is wanted, there is none), `audio` (the audio is damaged) or
        `annotation` (a segment was cut to the clip).
    """

    kind: str
    detail: str


def check_file(path: str) -> None:
    """Refuse what must not reach the demuxer: pipes would hang it, folders confuse it."""
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate in the name
        problem = error.strerror if isinstance(error, OSError) else str(error)
        raise VideoError("open", f"cannot open the file: {problem}") from error
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
        raise VideoError("open", f"is {kind}")
    if info.st_size == 0:
        raise VideoError("open", "the file is empty (0 bytes)")


def open_video(path: str) -> InputContainer:
    """Open a container for reading; close it, or use it as a context manager.

    Raises:
      VideoError: stage `open`.
    """
    check_file(path)
    try:
        return av.open(
            # A bare name is read as a URL where it has a colon.
            f"file:{path}",
            mode="r",
            # A text file may be a playlist; nothing it names may reach for the network. A frame
            # whose name has a %d or a * is that frame, not a series of others.
            options={"protocol_whitelist": "file", "pattern_type": "none"},
            **_METADATA,
        )
    except FFmpegError as error:
        raise VideoError("open", f"not a readable video file: {error.strerror}") from error


def video_stream(container: InputContainer) -> VideoStream:
    """The stream a player would show, set up to decode in this thread.

    Raises:
      VideoError: stage `empty` without a video stream, `decode` without a decoder.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams"
        raise VideoError("empty", f"has no video stream (found: {kinds})")
    if stream.codec_context is None:
        raise VideoError("decode", "there is no decoder for the video stream")
    # One thread per file: the processes use the cores, and threads would reorder nothing but
    # cost a third more CPU time.
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def origin_us(container: InputContainer) -> int | None:
    """Where the time of a file begins, on the clock of its streams; None if it does not say.

    AVI stores no display times; those derived for its video start late by the reordering delay.
    """
    return None if container.format.name == "avi" else container.start_time


def frame_rate(stream: VideoStream) -> Fraction:
    """Frames per second as announced, or a usual rate where the header has nonsense."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate is not None and Fraction(1, 1000) < rate <= 1000:
            return Fraction(rate)
    return FALLBACK_RATE


def is_spliced(container: InputContainer) -> bool:
    """Whether the clock of this container may be set anew anywhere."""
    return container.format.name in ("mpegts", "mpeg")


def announced_us(container: InputContainer, stream: VideoStream, origin_us: int) -> int | None:
    """Where the header says the video stream ends, in microseconds from `origin_us`.

    Some containers tell only where the last of their streams ends; see `tells_own_end`.
    """
    if stream.duration and stream.time_base:
        # The duration of an AVI that was cut is guessed, its count of frames is as written.
        ticks = max(stream.duration, stream.frames if container.format.name == "avi" else 0)
        length = ticks + (stream.start_time or 0)
        return round(length * stream.time_base * 1_000_000) - origin_us
    tag = _tagged_us(stream)
    return tag - origin_us if tag is not None else container.duration or None


def tells_own_end(container: InputContainer, stream: VideoStream) -> bool:
    """Whether what is announced is about this stream, not about the longest of the file."""
    name = container.format.name
    return name == "avi" or name.startswith(_MP4) or _tagged_us(stream) is not None


def _tagged_us(stream: VideoStream) -> int | None:
    """Matroska: the tag is about this stream, the container's duration may be of the audio."""
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if not tag:
        return None
    hours, minutes, seconds = tag.groups()
    return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1e6)


def outlasts(path: str, index: int, until_us: int, tick: Callable[[], None]) -> bool:
    """Whether another stream of a file than the one with this index goes on up to a time.

    Args:
      path: of the file.
      index: of the stream that ended.
      until_us: microseconds on the clock of the file's streams.
      tick: called for every packet.
    """
    with open_video(path) as container, contextlib.suppress(FFmpegError):
        for packet in container.demux():
            tick()
            stamp, unit = packet.pts if packet.pts is not None else packet.dts, packet.time_base
            if packet.stream_index == index or stamp is None or not unit:
                continue
            if (stamp + (packet.duration or 0)) * unit * 1_000_000 >= until_us:
                return True
    return False


def shown_frames(container: InputContainer, stream: VideoStream) -> int:
    """How many frames the header announces to be shown; 0 where it does not count them.

    An edit list of an MP4 hides frames which its header counts, the index does not.
    """
    if stream.frames and container.format.name.startswith(_MP4):
        return sum(not entry.is_discard and entry.size > 0 for entry in stream.index_entries)
    # An AVI counts frames that only repeat the one before.
    return 0 if container.format.name == "avi" else stream.frames
