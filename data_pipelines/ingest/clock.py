"""Times of frames whose stamps cannot all be right.

A file stores a stamp for every frame. Some are missing, doubled or far away from those around them,
recordings joined end to end start their clock anew, and some writers store the order of decoding.
`repair` takes the stamps in the order the frames are shown and keeps as many as it can: it
looks for the cheapest way through them, where a stamp passed over costs 1, a clock that is set anew
more, and a step unlike the usual one a little.

What counts as a jump of the clock, and not as a pause, is the same for the live check of a healthy
file (`longest_step`) and for the repair:

- MPEG transport and program streams may be spliced, their clock may be set anew anywhere, and a
  frame has to come every 0.7 s. In a steady stream a step forward of more than ten seconds is a
  jump, and of more than a second if a key frame follows, as it does where recordings were joined.
- Everywhere else a step is a pause, as screen recordings have them, unless it is longer than an
  hour and ten times the usual step.
- A step backwards that is no single wrong stamp is a jump.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

SECOND_US = 1_000_000
_SPLICE_US = 10 * SECOND_US
_PAUSE_US = 3600 * SECOND_US
# A file whose clock is broken may say about its beginning what it likes.
_LATE_US = 10 * SECOND_US
# In usual steps; a step that long in a stream of slow frames is nothing strange.
_LONG_STEPS = 10

# Costs, one wrong stamp being 1: a clock set anew, and a step unlike the usual one, where they vary
# and where they do not.
_RESTART = 4.5
_UNUSUAL = 0.2
_UNUSUAL_STEADY = 0.6
# Stamps on both sides that show what step is usual there.
_AROUND = 5
# Frames for every stamp there is: transport streams may hold one for several frames.
_LEAST = 8
# Stamps in another position for every one the dearer way would give up.
_MOVED = 3
# Wrong stamps in a row that are looked past, and positions by which decoding order differs.
_WINDOW = 16


@dataclass(frozen=True, slots=True)
class Jump:
    """A clock that was set anew, in microseconds on the clock of the file.

    Attributes:
      before, after: stamps of the frames on both sides.
      shift: to be added to stamps behind the jump to get the time that goes on.
    """

    before: int
    after: int
    shift: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Times of all frames of a file in the order they are shown.

    Attributes:
      times: microseconds on the clock of the first frame, increasing.
      wrong: frames whose stamp was missing or wrong.
      jumps: where the clock was set anew.
      reordered: the stamps were right but in another order.
      rate: at which the times were counted from 0, None where they were not.
    """

    times: list[int]
    wrong: int
    jumps: tuple[Jump, ...]
    reordered: bool = False
    rate: Fraction | None = None

    @classmethod
    def counted(cls, count: int, rate: Fraction) -> "Timeline":
        """Times of so many frames where the stamps tell nothing."""
        return cls([round(i * 1_000_000 / rate) for i in range(count)], count, (), rate=rate)

    def remark(self) -> str:
        """What was done, or an empty text."""
        if self.rate is not None:
            return f"frame times are missing or do not increase; counted at {self.rate} per s"
        found = []
        if self.reordered:
            found.append("frame times are out of order; sorted")
        elif self.wrong:
            found.append(
                f"{self.wrong} of {len(self.times)} frame times are missing or wrong; set from "
                "those around them"
            )
        if self.jumps:
            steps = ", ".join(f"{(j.after - j.before) / 1e6:+.2f} s" for j in self.jumps[:3])
            more = ", ..." if len(self.jumps) > 3 else ""
            found.append(f"the clock jumps ({steps}{more}); the times go on")
        return "; ".join(found)


class TimesBroken(Exception):
    """Frame times are missing, do not increase or jump."""


class FrameClock:
    """The times of frames in the order they are shown, on a clock that begins with the video.

    Args:
      timeline: the times to use; None to read them from the stamps.
      origin_us: where the file says that it begins, None if it does not.
      longest_us: a longer step is no time, `longest_step`.
      nominal_us: the announced time from frame to frame.

    Attributes:
      origin_us: time 0 on the clock of the file.
      last_us: time of the frame before, None before the first.
      step_us: the step to it.
      least_us: the smallest step so far, None before there is one.
      stored_us: the latest stamp, repaired or not, as a time.
    """

    def __init__(
        self, timeline: Timeline | None, origin_us: int | None, longest_us: int, nominal_us: int
    ):
        self._timeline, self._longest_us = timeline, longest_us
        self._shown = 0
        self.origin_us = origin_us
        self.last_us: int | None = None
        self.step_us = nominal_us
        self.least_us: int | None = None
        self.stored_us = 0

    def time(self, stamp_us: int | None, spoilt: bool = False) -> int:
        """The time of the next frame, whose stamp this is.

        Args:
          stamp_us: microseconds on the clock of the file, None if there is none.
          spoilt: the frame is damaged, and its stamp may be.

        Raises:
          TimesBroken: the stamp cannot be one.
        """
        timeline = self._timeline
        if timeline is None:
            if stamp_us is None:
                if spoilt:
                    return self.last_us or 0
                raise TimesBroken
            time_us = self._from_origin(stamp_us, math.inf)
            step = time_us - self.last_us if self.last_us is not None else 1
            if not spoilt and not 0 < step <= self._longest_us:
                raise TimesBroken
        elif timeline.rate is None:
            time_us = self._from_origin(timeline.times[self._shown], _LATE_US)
        else:
            time_us = timeline.times[self._shown]
        if stamp_us is not None:
            self.stored_us = max(self.stored_us, stamp_us - (self.origin_us or 0))
        self._shown += 1
        return time_us

    def go_on(self, time_us: int) -> None:
        """The frame at this time is done with."""
        if self.last_us is not None:
            self.step_us = time_us - self.last_us
            self.least_us = min(self.step_us, self.least_us or self.step_us)
        self.last_us = time_us

    def _from_origin(self, stamp_us: int, late_us: float) -> int:
        origin = self.origin_us
        if self._shown == 0 and (origin is None or not 0 <= stamp_us - origin <= late_us):
            self.origin_us = stamp_us
        return stamp_us - (self.origin_us or 0)


def longest_step(spliced: bool, nominal_us: int) -> int:
    """Steps longer than this need a closer look, in microseconds.

    Args:
      spliced: the container allows its clock to be set anew.
      nominal_us: the announced time from frame to frame.
    """
    return max(SECOND_US if spliced else _PAUSE_US, _LONG_STEPS * nominal_us)


def repair(
    stamps: Sequence[int | None],
    keys: Sequence[bool],
    spoilt: Sequence[bool],
    spliced: bool,
    nominal_us: int,
) -> Timeline | None:
    """Increasing times for frames with these stamps.

    Args:
      stamps: microseconds in the order the frames are shown; None where there is none.
      keys: which of them are key frames.
      spoilt: which are damaged; their stamps do not count.
      spliced: as in `longest_step`.
      nominal_us: the announced time from frame to frame.

    Returns:
      The times, or None where too few stamps make sense to rely on any.
    """
    stamps = [None if bad else stamp for stamp, bad in zip(stamps, spoilt, strict=True)]
    known = [i for i, stamp in enumerate(stamps) if stamp is not None]
    values = [stamp for stamp in stamps if stamp is not None]
    if _LEAST * len(values) < len(stamps) - sum(spoilt) or not values:
        return None
    steps = sorted(b - a for a, b in itertools.pairwise(values) if b > a)
    usual = steps[len(steps) // 2] if steps else nominal_us
    rules = _Rules.of(values, steps, usual, spliced, keys)
    path = _cheapest(values, known, rules)
    # What is too little to rely on may still be right in another order.
    found = _fill(stamps, path, sum(spoilt), rules) if 2 * len(path) >= len(values) else None
    ordered = _in_order(stamps, values, usual)
    if ordered is None:
        return found
    moved = sum(a != b for a, b in zip(ordered, stamps, strict=True))
    if found is None or (
        # A stamp far from its place would move all those between.
        moved <= _MOVED * found.wrong and _odd(ordered, usual) <= _odd(found.times, usual)
    ):
        return Timeline(ordered, 0, (), reordered=True)
    return found


@dataclass(frozen=True, slots=True)
class _Rules:
    """What counts as a step of one clock.

    Attributes:
      usual: the step in the middle of all.
      local: that of those around, for every stamp.
      unusual: cost of another one.
      longest: step to any frame.
      to_key: step to a key frame, or past one.
      last_key: index of the last key frame up to each frame.
    """

    usual: int
    local: list[int]
    unusual: float
    longest: int
    to_key: int
    last_key: list[int]

    @classmethod
    def of(
        cls,
        values: Sequence[int],
        steps: Sequence[int],
        usual: int,
        spliced: bool,
        keys: Sequence[bool],
    ) -> "_Rules":
        steady = sum(0.5 * usual <= step <= 1.6 * usual for step in steps) >= 0.9 * len(steps)
        long, short = (_SPLICE_US, SECOND_US) if spliced and steady else (_PAUSE_US, _PAUSE_US)
        least = _LONG_STEPS * usual
        last_key = list(itertools.accumulate((i if key else -1 for i, key in enumerate(keys)), max))
        unusual = _UNUSUAL_STEADY if steady else _UNUSUAL
        local = []
        for i in range(len(values)):
            around = values[max(0, i - _AROUND) : i + _AROUND]
            near = sorted(b - a for a, b in itertools.pairwise(around) if b > a)
            local.append(near[len(near) // 2] if near else usual)
        return cls(usual, local, unusual, max(long, least), max(short, least), last_key)

    def same_clock(self, step: int, i: int, k: int) -> bool:
        """Whether a step from frame i to frame k may be one."""
        limit = self.to_key if self.last_key[k] > i else self.longest
        return 0 < step <= limit + self.usual * (k - i - 1)

    def cost(self, step: int, i: int, k: int, usual: int) -> float:
        """Of trusting frame k next after frame i, but for those between."""
        if not self.same_clock(step, i, k):
            return _RESTART
        return self.unusual * min(1.0, abs(math.log2(step / (usual * (k - i)))))


def _cheapest(values: Sequence[int], positions: Sequence[int], rules: _Rules) -> list[int]:
    """Which frames to trust, by dynamic programming over the last trusted one.

    Args:
      values: the stamps there are.
      positions: the frames they belong to.
      rules: costs.
    """
    cost = [0.0] * len(values)
    back = [-1] * len(values)
    for i, value in enumerate(values):
        cost[i] = i if i <= _WINDOW else math.inf
        for j in range(max(0, i - _WINDOW - 1), i):
            step = rules.cost(value - values[j], positions[j], positions[i], rules.local[i])
            if cost[j] + i - j - 1 + step < cost[i]:
                cost[i], back[i] = cost[j] + i - j - 1 + step, j
    tail = range(max(0, len(values) - _WINDOW - 1), len(values))
    at = min(tail, key=lambda i: cost[i] + len(values) - 1 - i)
    path = []
    while at >= 0:
        path.append(positions[at])
        at = back[at]
    return path[::-1]


def _fill(
    stamps: Sequence[int | None], path: Sequence[int], spoilt: int, rules: _Rules
) -> Timeline:
    """Times from the trusted stamps: those between are spread evenly, those outside go on."""
    usual = rules.usual
    trusted = [(i, stamp) for i in path if (stamp := stamps[i]) is not None]
    first, stamp = trusted[0]
    times = [stamp - (first - i) * usual for i in range(first)]
    times.append(stamp)
    shift = 0
    jumps = []
    for (i, before), (k, after) in itertools.pairwise(trusted):
        if not rules.same_clock(after - before, i, k):
            shift = times[i] + usual * (k - i) - after
            jumps.append(Jump(before, after, shift))
        low, high = times[i], after + shift
        times.extend(low + (high - low) * n // (k - i) for n in range(1, k - i))
        times.append(high)
    last = times[-1]
    times.extend(last + n * usual for n in range(1, len(stamps) - len(times) + 1))
    return Timeline(times, len(stamps) - len(trusted) - spoilt, tuple(jumps))


def _in_order(stamps: Sequence[int | None], values: Sequence[int], usual: int) -> list[int] | None:
    """The stamps sorted, if they are the right ones and only in another order."""
    if len(values) < len(stamps):
        return None
    order = sorted(range(len(values)), key=values.__getitem__)
    times = [values[i] for i in order]
    if times == values or any(abs(i - position) > _WINDOW for position, i in enumerate(order)):
        return None
    if any(
        b <= a or b - a > max(_PAUSE_US, _LONG_STEPS * usual) for a, b in itertools.pairwise(times)
    ):
        return None
    return times


def _odd(times: Sequence[int], usual: int) -> int:
    """How many steps are not the usual one."""
    return sum(abs(b - a - usual) > usual // 4 for a, b in itertools.pairwise(times))


def microseconds(ticks: int, unit: Fraction) -> int:
    """Rounded half to even, as `round` does; a Fraction for every frame costs 3 % of the ingest."""
    whole, rest = divmod(ticks * unit.numerator * 1_000_000, unit.denominator)
    return whole + (2 * rest > unit.denominator - whole % 2)
