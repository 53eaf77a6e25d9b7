"""Whether all of a video came out of its file."""

from collections.abc import Callable
from dataclasses import dataclass

from av.container import InputContainer
from av.video.stream import VideoStream

from data_pipelines.ingest.container import announced_us, outlasts, shown_frames, tells_own_end

# Below this share of the announced frames or duration a video counts as partial.
COMPLETE = 0.9


@dataclass(slots=True)
class Tally:
    """What one pass over a file has seen so far; times in microseconds of the clip.

    Attributes:
      good: frames that were decoded.
      corrupt: frames that came out damaged.
      inside: good frames between start and end of the cut.
      damaged: frames of the cut that are damaged or could not be decoded.
      missing: frames of the cut that are not in the file any more, by the time that passed.
      gap: from where to where the first of those were missed.
      discarded: packets that are not to be shown.
      end_us: where the last good frame ends.
      stored_end_us: where the latest frame ends by its stamp, repaired or not.
      reached_end: the end of the cut was reached.
      error: why reading stopped.
    """

    good: int = 0
    corrupt: int = 0
    inside: int = 0
    damaged: int = 0
    missing: int = 0
    gap: tuple[int, int] | None = None
    discarded: int = 0
    end_us: int = 0
    stored_end_us: int = 0
    reached_end: bool = False
    error: str = ""

    @property
    def lost(self) -> int:
        """Frames of the cut that are not among the good ones."""
        return self.damaged + self.missing

    def remark(self) -> str:
        """What was left out, or an empty text."""
        found = [f"left out {self.damaged} damaged frames"] if self.damaged else []
        if self.gap:
            low, high = self.gap
            found.append(
                f"about {self.missing} frames are missing, the first of them between "
                f"{low / 1e6:.2f} and {high / 1e6:.2f} s"
            )
        return "; ".join(found)


class Losses:
    """Counts the frames of a cut that are lost, where the good ones around show how many and when.

    Args:
      tally: what to count in.
      low_us, high_us: the cut, in microseconds of the clip.
    """

    def __init__(self, tally: Tally, low_us: int, high_us: int | None):
        self._tally, self._low_us, self._high_us = tally, low_us, high_us
        # Since the last good frame: packets lost, frames said to be missing, frames damaged.
        self._lost = self._guessed = self._spoilt = 0
        self._wide: tuple[int, int, int] | None = None  # the last wide step, and the usual one

    def add(self, lost: int, guessed: int) -> None:
        """Packets that could not be decoded, and frames that must have been in a gap."""
        self._lost += lost
        self._guessed += guessed

    def spoil(self, time_us: int) -> None:
        """A damaged frame came out."""
        self._spoilt += 1
        self._tally.damaged += self._is_inside(time_us)

    def settle(self, before_us: int | None, time_us: int | None, usual_us: int) -> None:
        """A good frame came out.

        Args:
          before_us: time of the good frame before, None if this is the first.
          time_us: time of this one, None at the end.
          usual_us: the step before.
        """
        lost, guessed, spoilt = self._lost, self._guessed, self._spoilt
        self._lost = self._guessed = self._spoilt = 0
        tally, step = self._tally, float(max(1, usual_us))
        if before_us is not None and time_us is not None:
            wide = time_us - before_us > 2 * usual_us
            if wide:
                self._wide = before_us, time_us, usual_us
            elif guessed and not lost and self._wide is not None:
                before_us, time_us, usual_us = self._wide  # in a steady stream it shows afterwards
            # Where a clock was set anew no time has passed.
            room = round((time_us - before_us) / max(1, usual_us)) - 1 - spoilt - lost
            guessed = max(0, min(guessed, room))
            step = (time_us - before_us) / (lost + guessed + 1)
        if not lost and not guessed:
            return
        # Before the first frame nothing has a time, and all of it is the beginning of the clip.
        first = before_us if before_us is not None else self._low_us
        inside = sum(self._is_inside(first + step * n) for n in range(1, lost + guessed + 1))
        missing = min(guessed, inside)
        tally.missing += missing
        tally.damaged += inside - missing
        if missing and tally.gap is None:
            tally.gap = (before_us or 0, time_us if time_us is not None else tally.end_us)

    def _is_inside(self, time_us: float) -> bool:
        return time_us >= self._low_us and (self._high_us is None or time_us < self._high_us)


def shortfall(
    path: str,
    container: InputContainer,
    stream: VideoStream,
    tally: Tally,
    origin_us: int,
    low_us: int,
    high_us: int | None,
    sought: bool,
    tick: Callable[[], None],
) -> str:
    """What is missing of what a file announces, or an empty text.

    Args:
      path, container, stream: the file and what of it was read.
      tally: what was seen.
      origin_us: time 0 of the clip on the clock of the file.
      low_us, high_us: the cut, in microseconds of the clip.
      sought: reading did not begin at the beginning.
      tick: called for every packet that has to be looked at.
    """
    if tally.error:
        return f"decoding stopped after {tally.good} frames: {tally.error}"
    if not sought and not tally.reached_end and tally.good < COMPLETE * stream.frames:
        # Packets before an edit point are counted but never shown.
        announced = shown_frames(container, stream)
        if announced == stream.frames:
            announced -= tally.discarded
        if tally.good < COMPLETE * announced:
            return f"{tally.good} of {announced} frames"
    # Demuxers skip over damage without an error.
    if tally.inside < COMPLETE * (tally.inside + tally.lost):
        return f"{tally.inside} of about {tally.inside + tally.lost} frames, damaged in the middle"
    end_us = announced_us(container, stream, origin_us)
    if tally.reached_end or end_us is None:
        return ""
    wanted = min(end_us, high_us or end_us) - low_us
    got = max(tally.end_us, tally.stored_end_us) - low_us
    if got >= COMPLETE * wanted:
        return ""
    # What was announced may be the end of another stream.
    if not tells_own_end(container, stream) and outlasts(
        path, stream.index, origin_us + low_us + round(COMPLETE * wanted), tick
    ):
        return ""
    return f"{max(0, got) / 1e6:.2f} of {wanted / 1e6:.2f} s"
