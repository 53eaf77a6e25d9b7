"""Whether it helped: what was measured before and after, with what luck could have made of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

LOWER = ("loss",)  # metrics that are better when they are lower
SURE = 2.0  # standard errors that a difference must exceed to be called one


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One number before and after, over seeds.

    Attributes:
      before, after: (S,) of the seeds.
      error: standard error of the mean difference: of the seeds, and of the test videos where what
        was found for each is known.
    """

    label: str
    metric: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    error: float

    @property
    def gain(self) -> float:
        """Mean difference."""
        return fmean(self.after) - fmean(self.before)

    @property
    def answer(self) -> str:
        """helped | hurt | no clear difference"""
        if abs(self.gain) <= SURE * self.error:
            return "no clear difference"
        return "helped" if (self.gain < 0) == (self.metric in LOWER) else "hurt"

    def text(self) -> str:
        """A sentence for the person who asked."""
        begin = {
            "helped": "It helped",
            "hurt": "It hurt",
            "no clear difference": "It made no clear difference",
        }[self.answer]
        seeds = len(self.before)
        luck = (
            f"standard error {self.error:.3f}, over {seeds} seeds"
            if seeds > 1
            else f"standard error {self.error:.3f}, one seed: luck of the seed is not in it"
        )
        return (
            f"{begin}: {self.label} {self.metric} {shown(self.before)} before, "
            f"{shown(self.after)} after, {self.gain:+.3f} ({luck})"
        )

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "answer": self.answer,
            "label": self.label,
            "metric": self.metric,
            "before": list(self.before),
            "after": list(self.after),
            "mean_before": fmean(self.before),
            "mean_after": fmean(self.after),
            "sd_before": spread(self.before),
            "sd_after": spread(self.after),
            "gain": self.gain,
            "standard_error": self.error,
            "text": self.text(),
        }


def shown(values: Sequence[float]) -> str:
    """`0.634 (sd 0.088)`"""
    sd = spread(values)
    return f"{fmean(values):.3f}" + ("" if sd is None else f" (sd {sd:.3f})")


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation; None of one value."""
    return stdev(values) if len(values) > 1 else None


def judge(
    label: str,
    metric: str,
    before: Sequence[float],
    after: Sequence[float],
    hits: tuple[np.ndarray, np.ndarray] | None,
    videos: int,
) -> Judgement:
    """The verdict on one number.

    Args:
      before, after: (S,) of the same seeds.
      hits: (S, V) 0 or 1 of the test videos before and after, in one order; None: not known, and
        then the error of a share of `videos` stands in, as if both were measured on videos of
        their own.
    """
    differences = np.subtract(after, before)
    of_seeds = 0.0
    if len(differences) > 1:
        of_seeds = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if hits is not None:
        each = (hits[1] - hits[0]).mean(axis=0)
        of_videos = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    elif metric not in LOWER and min(*before, *after) >= 0 and max(*before, *after) <= 1:
        shares = [fmean(side) for side in (before, after)]
        of_videos = math.sqrt(sum(p * (1 - p) for p in shares) / max(videos, 1))
    else:  # no share of videos, so that seeds alone tell
        of_videos = 0.0 if len(differences) > 1 else math.inf
    return Judgement(label, metric, tuple(before), tuple(after), math.hypot(of_seeds, of_videos))


def to_take(
    verdict: Judgement, start: str, runs: Mapping[int, str], held_out: Sequence[float]
) -> str:
    """Which weights to go on with, chosen without the test videos.

    Args:
      runs: what every seed left, in the order of the seeds.
      held_out: (S,) what the probe itself held out of the training clips; empty: nothing.
    """
    if verdict.answer != "helped":
        return start
    best = max(range(len(held_out)), key=lambda place: held_out[place]) if held_out else 0
    return list(runs.values())[best]
