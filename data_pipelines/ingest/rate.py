"""Fewer frames per second than a video has."""

from fractions import Fraction


class RateSampler:
    """Chooses the frames nearest to the ticks of a lower rate; repeats none.

    Args:
      fps: the wanted rate, None for all frames.
      rate: of the source, in frames per second.

    Attributes:
      fps: the rate of what is taken, never above that of the source.
    """

    def __init__(self, fps: float | None, rate: Fraction):
        self._all = fps is None or rate <= fps
        self.fps = float(rate) if self._all else float(fps or 0)
        self._step = Fraction(1_000_000) / Fraction(self.fps)
        self._half_frame = Fraction(500_000) / rate
        self._first: int | None = None
        self._next = 0

    def takes(self, time_us: int) -> bool:
        """Whether to keep the frame at this time; to be asked once per frame, in time order."""
        if self._all:
            return True
        if self._first is None:
            self._first = time_us
        ticks = (time_us - self._first + self._half_frame) // self._step
        if ticks < self._next:
            return False
        self._next = int(ticks) + 1
        return True
