"""How many seconds of a video a clip spans: what index arithmetic leaves open.

Sixteen frames at stride 4 are 2.1 seconds of a video of 30 frames/s and 5.3 of one of 12. A model
sees frames only, so weights that learned from the one look at the other in slow motion or fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from data_pipelines.clips import sampling
from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.records.dataset import FrameTimes

FACTOR = 1.5  # spans are told apart when one is more than so many times the other
UNEVEN = 0.1  # an interval that differs from the median by more of it makes a rate variable
SHOWN = ("frames", "stride", "sampling")

Choose = Callable[[int, FrameTimes], np.ndarray]  # (number, video) -> (clips, T) frame numbers


@dataclasses.dataclass(frozen=True)
class Spans:
    """Seconds of the clips of a set, over the videos that were looked at.

    Attributes:
      videos: how many; 0 where there are none with several frames.
      median, low, high: seconds, low and high the 5 and 95 % quantiles.
      short: share of videos with a clip that repeats frames, as they have too few.
      fps: least, median and greatest rate of the stored frames.
      uneven: share of videos whose frames are not evenly spaced in time.
    """

    videos: int
    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    short: float = 0.0
    fps: tuple[float, float, float] = (0.0, 0.0, 0.0)
    uneven: float = 0.0

    def text(self) -> str:
        """`2.13 s (5 to 95 %: 2.13 to 2.56), 25 to 30 frames/s, 4% of videos shorter ...`"""
        if not self.videos:
            return "no video of several frames to tell seconds of"
        least, middle, most = self.fps
        rate = f"{middle:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
        parts = [f"{self.median:.3g} s", f"{rate} frames/s"]
        if f"{self.low:.2g}" != f"{self.high:.2g}":
            parts[0] += f" (5 to 95 %: {self.low:.3g} to {self.high:.3g})"
        if most > FACTOR * least:
            parts.append("rates are mixed")
        if self.uneven:
            parts.append(f"{self.uneven:.0%} of videos of variable rate")
        if self.short:
            parts.append(f"{self.short:.0%} of videos shorter than a clip, which repeats frames")
        return ", ".join(parts)

    def as_plain(self) -> dict[str, Any]:
        """For JSON, rounded to what it means."""
        found: dict[str, Any] = {"videos": self.videos}
        for name in ("median", "low", "high", "short", "uneven"):
            found[name] = round(float(vars(self)[name]), 4)
        return {**found, "fps": [round(rate, 3) for rate in self.fps]}


def span(times: np.ndarray, chosen: np.ndarray) -> tuple[float, bool]:
    """Seconds that the frames of a clip stand for, and whether some of them come again.

    Each different frame stands for the time to the next one, so that 16 frames at stride 4 of 30
    frames/s are 64 / 30 s.

    Args:
      times: (N,) of the frames of the video, microseconds.
      chosen: (T,) numbers of frames.
    """
    different = np.unique(chosen)
    repeats = len(different) < len(chosen)
    if len(different) == 1:
        return 0.0, repeats
    length = (int(times[different[-1]]) - int(times[different[0]])) / 1e6
    return length * len(different) / (len(different) - 1), repeats


def spans(videos: Iterable[FrameTimes], choose: Choose) -> Spans:
    """Of the clips that `choose` takes; a video that it refuses counts as short."""
    seconds, short, rates, uneven = [], [], [], []
    for number, video in enumerate(videos):
        times = np.asarray(video.times_us, np.int64)
        if len(times) < 2:
            continue
        rates.append(video.fps)
        steps = np.diff(times)
        middle = np.median(steps)
        uneven.append(bool((np.abs(steps - middle) > UNEVEN * middle).any()))
        try:
            clips = [span(times, np.clip(row, 0, len(times) - 1)) for row in choose(number, video)]
        except ValueError:  # the rule has no clip of so few frames
            short.append(True)
            continue
        short.append(any(repeats for _, repeats in clips))
        seconds.append(float(np.median([length for length, _ in clips])))
    if not seconds:
        return Spans(0)
    low, median, high = np.quantile(seconds, (0.05, 0.5, 0.95))
    return Spans(
        len(rates),
        float(median),
        float(low),
        float(high),
        float(np.mean(short)),
        (min(rates), float(np.median(rates)), max(rates)),
        float(np.mean(uneven)),
    )


def of_training(videos: Sequence[FrameTimes], clip: ClipConfig) -> Spans:
    """Spans of training clips; each video gives one, drawn by its number."""

    def choose(number: int, video: FrameTimes) -> np.ndarray:
        rng = np.random.default_rng(number)
        rule, times = clip.sampling, video.times_us
        return sampling.train_frames(rule, times, video.fps, clip.frames, clip.stride, rng)[None]

    return spans(videos, choose) if clip.frames > 1 else Spans(0)


def of_views(videos: Sequence[FrameTimes], views: ViewConfig) -> Spans:
    """Spans of the views of a test."""
    clip = views.clip

    def choose(_: int, video: FrameTimes) -> np.ndarray:
        return sampling.view_frames(
            clip.sampling, video.times_us, video.fps, clip.frames, clip.stride, views.clips
        )

    return spans(videos, choose) if clip.frames > 1 else Spans(0)


def difference(here: float, there: float) -> float:
    """How many times one span is the other where that is more than FACTOR; else 0."""
    if min(here, there) <= 0:
        return 0.0
    times = max(here, there) / min(here, there)
    return times if times > FACTOR else 0.0


def fitting_stride(clip: ClipConfig, here: Spans, wanted: float) -> int:
    """The stride whose clips span about `wanted` seconds; 0 where another one changes nothing."""
    if clip.sampling not in ("window", "dense", "windows", sampling.CLOCK) or not here.median:
        return 0
    stride = max(round(clip.stride * wanted / here.median), 1)
    return stride if stride != clip.stride else 0
