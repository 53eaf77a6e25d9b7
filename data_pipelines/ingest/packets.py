"""The frames of a video stream in the order they are shown, and what was lost on the way.

A decoder gives frames later than their packets and in another order, so every packet carries a tag
that its frame brings back. With it can be said which frames lie behind a packet that could not be
decoded, and what time an AVI, which stores the order of decoding only, means.
"""

import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import av
from av import logging
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

# Steps between packets of which the middle one is the usual step.
_RECENT = 15
# In usual steps: what is a gap where the demuxer met damage, and in a steady stream without that.
_GAP = 1.5
_SILENT_GAP = 2.5
# Steps after a sign of damage in which a gap is put down to it: transport streams mark the packet
# before the gap, other demuxers are some packets ahead.
_FOLLOWING = 5
# Codecs whose frames follow each other at the rate of the sequence header.
_FIXED_RATE = ("mpeg1video", "mpeg2video")
# An AVI's index names the header of a chunk, packets begin behind it.
_CHUNK_HEADER = 8


@contextlib.contextmanager
def counted_errors() -> Iterator[Callable[[], int]]:
    """Let libav's error messages be counted; they are printed nowhere.

    Demuxers search on behind damage without an error; only their log tells.

    Yields:
      A function that tells how many there were.
    """
    level = logging.get_level()
    if level is None:
        logging.set_level(logging.PANIC)
    start = logging.get_last_error()[0]
    try:
        yield lambda: logging.get_last_error()[0] - start
    finally:
        logging.set_level(level)


class _Tag:
    """What a packet gives its frame to carry."""

    __slots__ = ("duration", "number", "stamp")

    def __init__(self, number: int, stamp: int | None, duration: int):
        self.number = number
        self.stamp = stamp
        self.duration = duration


def _tag(carrier: av.VideoFrame | Packet) -> _Tag | None:
    tag = carrier.opaque
    return tag if isinstance(tag, _Tag) else None


class _Loss(NamedTuple):
    """Frames that never come out.

    Attributes:
      number: of the packet behind them, or of the one that could not be decoded.
      frames: how many.
      guessed: by the time that passed.
    """

    number: int
    frames: int
    guessed: bool = False


class FrameReader:
    """Reads one stream once.

    Args:
      container, stream: what to read.
      errors: from `counted_errors`, begun before the container was opened.

    Attributes:
      error: why reading ended before the end of the file; before the first frame also why nothing
        could be decoded.
      packets: read so far.
      discarded: packets that are not to be shown.
      begins: when the first packet is shown, in units of the stream, where the container has no
        times of showing; known with the first frame.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, errors: Callable[[], int]):
        self._container, self._stream, self._errors = container, stream, errors
        self.error = ""
        self.packets = 0
        self.discarded = 0
        self.begins: int | None = None
        stream.codec_context.copy_opaque = True
        self._predicted = not stream.codec_context.codec.intra_only
        # To learn what there is in a file its beginning, or all of a short one, is read ahead.
        self._doubtful = errors() > 0 or stream.codec_context.name in _FIXED_RATE
        # Whose first frame is a key frame is a matter of the packets, or of the index where the
        # packet is too damaged to tell.
        first = next(iter(stream.index_entries), None)
        self._first_key = first.timestamp if first is not None and first.is_keyframe else None
        self._begun = self._frames_seen = False
        self._broken: int | None = None  # number of a packet that others were predicted from
        self._losses: deque[_Loss] = deque()
        # AVI: stamps of packets not shown yet, how many the decoder is behind, and the last time.
        self._waiting: deque[int] | None = deque() if container.format.name == "avi" else None
        self._delay: int | None = None
        self._last, self._step = 0, 0
        self._first: int | None = None  # stamp of the first packet, if it holds a key frame
        self._zero = 0  # from where stamps are counted
        self._index = self._avi_index()
        self._position = -1  # of the last packet in the index
        self._stamp: int | None = None
        self._steps: deque[int] = deque(maxlen=_RECENT)
        # Stamp and number of packets whose frames are still to come, and the last that came.
        self._coming: list[tuple[int, int]] = []
        self._last_shown: int | None = None
        self._maybe: tuple[int, int, int] | None = None  # a silent gap, until the next packet
        self._suspect = 0  # steps for which damage just met may be to blame

    def frames(self, tick: Callable[[], None]) -> Iterator[av.VideoFrame]:
        """Decoded frames up to the end of the file, whatever is damaged in between."""
        packets = self._container.demux(self._stream)
        while True:
            errors = self._errors()
            try:
                packet = next(packets, None)
            except FFmpegError as error:
                held_back = self._decode(None)  # that is intact
                self.error = error.strerror or str(error)
                yield from held_back
                return
            if packet is None:
                return
            tick()
            if packet.size:
                if packet.is_corrupt or self._errors() > errors:
                    self._suspect = _FOLLOWING
                self._register(packet)
            elif packet.pts is not None or packet.dts is not None:
                continue  # nothing in it; to a decoder it would mean the end
            yield from self._decode(packet)

    def stamp(self, frame: av.VideoFrame) -> int | None:
        """When a frame is shown, in units of the stream; to be asked once per frame, in order.

        An AVI says of a packet when it is read. With frames that are read before others are shown,
        the decoder is some packets behind, and a frame is shown when the packet that makes it come
        out is read.
        """
        waiting = self._waiting
        if waiting is None:
            self._pass_by(frame)
            return frame.pts
        tag = _tag(frame)
        if frame.key_frame and tag is not None and tag.stamp is not None:
            while waiting and waiting[0] < tag.stamp:
                waiting.popleft()  # of frames that never came
        first = self._delay is None
        if self._delay is None:
            self._delay = max(0, len(waiting) - 1)
            if self._first is not None and waiting:
                self.begins = self._first + waiting[self._delay] - waiting[0]
        stamp = waiting[self._delay] if len(waiting) > self._delay else self._last + self._step
        if waiting:
            waiting.popleft()
        self._last, self._step = stamp, stamp - self._last
        if first and stamp != frame.pts:
            # The decoder's own stamps are others and count for nothing: count from 0, unrounded.
            self._zero = self.begins if self.begins is not None else stamp
            self.begins = 0
        return stamp - self._zero

    def duration(self, frame: av.VideoFrame) -> int:
        """How long the file says that a frame is shown, in units of the stream; 0: it does not."""
        tag = _tag(frame)
        return max(frame.duration or 0, tag.duration if tag is not None else 0)

    def spoilt(self, frame: av.VideoFrame) -> bool:
        """Whether a frame is damaged, or predicted from one that was; to be asked in order."""
        tag = _tag(frame)
        if frame.key_frame or tag is None:
            if tag is None or self._broken is None or tag.number > self._broken:
                self._broken = None
            return bool(frame.is_corrupt)
        return bool(frame.is_corrupt) or (self._broken is not None and tag.number > self._broken)

    def lost_before(self, frame: av.VideoFrame | None) -> tuple[int, int]:
        """Frames lost between the frame before and this one, counted and guessed.

        None stands for the end.
        """
        tag = _tag(frame) if frame is not None else None
        number = tag.number if tag is not None else self.packets
        lost = [0, 0]
        while self._losses and self._losses[0].number <= number:
            loss = self._losses.popleft()
            lost[loss.guessed] += loss.frames
        return lost[0], lost[1]

    def _decode(self, packet: Packet | None) -> list[av.VideoFrame]:
        try:
            frames = self._stream.decode(packet)
        except FFmpegError as error:
            if not self._frames_seen:
                self.error = self.error or error.strerror or str(error)
            # A recording that starts between key frames fails until the first of them.
            if packet is not None and packet.size and self._begun:
                self._lose(packet)
            return []
        if frames and not self._frames_seen:
            self._frames_seen, self.error = True, ""
        return frames

    def _lose(self, packet: Packet) -> None:
        """Take note of a packet that cannot be decoded."""
        number, tag = self.packets - 1, _tag(packet)
        if packet.pts is not None and (packet.pts, number) in self._coming:
            self._coming.remove((packet.pts, number))
            heapq.heapify(self._coming)
        self._losses.append(_Loss(number, 1))
        if self._predicted and not packet.is_disposable:
            self._broken = number
        if self._waiting is not None and tag is not None and tag.stamp in self._waiting:
            self._waiting.remove(tag.stamp)

    def _pass_by(self, frame: av.VideoFrame) -> None:
        """Find packets whose time is over and that gave neither a frame nor an error."""
        stamp, before = frame.pts, self._last_shown
        if stamp is None:
            return
        silent = []
        while self._coming and self._coming[0][0] <= stamp:
            due, number = heapq.heappop(self._coming)
            if due < stamp and (before is None or due > before):
                silent.append(number)
        self._last_shown = stamp
        if before is None:
            # Where the first of all has no frame those up to the next key frame have none either.
            gone = 0 in silent or self._broken == 0
            if gone and silent and self._predicted:
                self._broken = silent[-1]
            lost = silent if gone else []
        else:
            # Some packets have no frame of their own, but then no time passes with it.
            lost = silent if silent and stamp - before > _GAP * self._usual() else []
        if lost:
            tag = _tag(frame)
            self._losses.append(_Loss(tag.number if tag is not None else 0, len(lost)))

    def _register(self, packet: Packet) -> None:
        stamp = packet.dts if packet.dts is not None else packet.pts
        if self._index is not None and packet.pos is not None:
            position, stamp = self._index.get(packet.pos - _CHUNK_HEADER, (-1, stamp))
            if position > self._position + 1 and self._position >= 0:
                self._losses.append(_Loss(self.packets, position - self._position - 1))
            self._position = position
        elif stamp is not None:
            self._watch(stamp)
        packet.opaque = _Tag(self.packets, stamp, packet.duration or 0)
        at_index = self.packets == 0 and self._first_key in (packet.pts, packet.dts)
        self._begun |= packet.is_keyframe or (at_index and self._first_key is not None)
        if packet.pts is not None and not packet.is_discard and self._begun:
            heapq.heappush(self._coming, (packet.pts, self.packets))
        if self._waiting is not None and stamp is not None:
            self._waiting.append(stamp)
            if self.packets == 0 and self._begun:
                self._first = stamp
        self.packets += 1
        self.discarded += packet.is_discard

    def _watch(self, stamp: int) -> None:
        """Note a step that shows that packets are missing."""
        step = stamp - self._stamp if self._stamp is not None else 0
        self._stamp = stamp
        if self._maybe is not None:
            number, lost, limit = self._maybe
            self._maybe = None
            if 0 < step <= limit:  # back to the usual step, so the rate has not changed
                self._losses.append(_Loss(number, lost, guessed=True))
        if step <= 0:
            return
        if self._suspect or self._doubtful:
            usual = self._usual()
            lost = round(step / usual) - 1 if usual else 0
            if lost > 0 and self._suspect and step > _GAP * usual:
                self._losses.append(_Loss(self.packets, lost, guessed=True))
            elif lost > 0 and step > _SILENT_GAP * usual and len(self._steps) == _RECENT:
                self._maybe = (self.packets, lost, round(_GAP * usual))
            self._suspect = max(0, self._suspect - 1)
        self._steps.append(step)

    def _usual(self) -> float:
        if self._steps:
            return sorted(self._steps)[len(self._steps) // 2]
        rate, unit = self._stream.guessed_rate, self._stream.time_base
        return float(1 / (rate * unit)) if rate and unit else 0.0

    def _avi_index(self) -> dict[int, tuple[int, int]] | None:
        """Position of a chunk -> its place among the chunks that hold a frame, and its stamp."""
        if self._waiting is None:
            return None
        entries = self._stream.index_entries
        return {entry.pos: (i, entry.timestamp) for i, entry in enumerate(entries)}
