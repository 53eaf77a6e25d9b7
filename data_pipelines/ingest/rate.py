"""Fewer frames per second than a video has."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")

# Containers round times, Matroska to milliseconds.
_ROUNDED_US = 1000


class RateSampler:
    """Chooses the frames nearest to the ticks of a lower rate; repeats none.

    What is nearest is decided by the times of the frames around, not by the rate of the header,
    which is a mean where the rate varies. A frame reaches half the way to the nearer of its
    neighbours; it is taken if a tick lies behind it, or within its reach, that no frame has served.

    Args:
      fps: the wanted rate, None for all frames.
      rate: of the source as announced, in frames per second.

    Attributes:
      fps: the rate of what is taken, never above that of the source.
    """

    def __init__(self, fps: float | None, rate: Fraction):
        self._slow = fps is None or rate <= fps
        self.fps = float(rate) if fps is None or self._slow else float(fps)
        self._step = None if fps is None else Fraction(1_000_000) / Fraction(fps)
        self._usual = Fraction(1_000_000) / rate
        self._first = self._last = 0
        self._next = 0

    def sample(self, frames: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
        """The frames to keep of (time in microseconds, frame), in time order.

        Reads one frame ahead of what it gives.
        """
        if self._step is None:
            yield from frames
            return
        held: tuple[int, T] | None = None
        reach = self._usual / 2
        for item in frames:
            if held is None:
                self._first = item[0]
            else:
                ahead = self._half(item[0] - held[0])
                if self._takes(held[0], min(reach, ahead) if self._next else ahead, self._step):
                    yield held
                reach = ahead
            held = item
        if held is not None and self._takes(held[0], reach, self._step):
            yield held

    def _half(self, step_us: int) -> Fraction:
        rounded = abs(step_us - self._usual) <= _ROUNDED_US
        return (self._usual if rounded else Fraction(step_us)) / 2

    def _takes(self, time_us: int, reach: Fraction, step: Fraction) -> bool:
        ticks = int((time_us - self._first + reach) // step)
        if ticks < self._next:
            return False
        # A source of about the wanted rate slowly runs past the ticks; where its times jitter, none
        # is to be lost at the moment it does.
        steady = self._slow and self._next > 0 and 2 * (time_us - self._last) < 3 * step
        self._next = max(self._next + 1, ticks) if steady else ticks + 1
        self._last = time_us
        return True
