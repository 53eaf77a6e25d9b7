"""How far apart two clips are, whichever of them was cut, mirrored or encoded again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipelines.audit.fingerprints import normal

LEAST_OVERLAP = 0.5  # of the shorter clip must be seen in the longer one


class Match(NamedTuple):
    """Two clips laid over each other where they fit best.

    Attributes:
      distance: root mean square of sqrt(2 - 2 correlation) over the pictures that lie on another;
        0 = equal, 1.41 = nothing in common.
      shift_us: how much later the second begins, in the time of the first.
      pictures: that lie on another.
    """

    distance: float
    shift_us: int
    pictures: int


NOTHING = Match(float("inf"), 0, 0)


def match(
    first: np.ndarray, second: np.ndarray, first_period: int, second_period: int, mirrored: bool
) -> Match:
    """The best match of (T, S, S) uint8 pictures with (T', S, S), the second mirrored if told so.

    Periods differ by a power of two; the finer one is thinned.
    """
    if mirrored:
        second = second[:, :, ::-1]
    period = max(first_period, second_period)
    best = NOTHING
    a, b = period // first_period, period // second_period
    for phase in range(max(a, b)):
        one = normal(first[phase % a :: a] if a > 1 else first)
        two = normal(second[phase % b :: b] if b > 1 else second)
        shift, found = _best_shift(one, two)
        if found.distance < best.distance:
            late = phase * first_period if a > 1 else -phase * second_period if b > 1 else 0
            best = found._replace(shift_us=shift * period + late)
    return best


def _best_shift(one: np.ndarray, two: np.ndarray) -> tuple[int, Match]:
    if not (len(one) and len(two)):
        return 0, NOTHING
    squared = np.clip(2.0 - 2.0 * (one @ two.T), 0.0, None)
    least = max(1, int(np.ceil(LEAST_OVERLAP * min(len(one), len(two)))))
    best = 0, NOTHING
    for shift in range(least - len(two), len(one) - least + 1):
        # Picture `shift + k` of the first lies on picture k of the second.
        diagonal = np.diagonal(squared, -shift)
        if len(diagonal) < least:
            continue
        distance = float(np.sqrt(diagonal.mean()))
        if distance < best[1].distance:
            best = shift, Match(distance, 0, len(diagonal))
    return best
