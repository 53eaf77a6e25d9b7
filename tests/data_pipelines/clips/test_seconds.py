"""How many seconds a clip spans, for sets of several rates."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.clips import seconds
from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.records.dataset import FrameTimes, open_dataset


def video(fps: float, length: float) -> FrameTimes:
    count = round(fps * length)
    return FrameTimes(tuple(round(i * 1e6 / fps) for i in range(count)), fps)


def variable(length: float = 10.0) -> FrameTimes:
    """Five seconds at 10 frames/s, then as many at 30."""
    times = [i / 10 for i in range(50)] + [5 + i / 30 for i in range(round(30 * (length - 5)))]
    return FrameTimes(tuple(round(time * 1e6) for time in times), 20.0)


@pytest.mark.parametrize("fps", [12, 25, 30, 60])
@pytest.mark.parametrize("sampling", ["window", "dense"])
def test_a_clip_of_16_frames_at_stride_4(fps, sampling):
    found = seconds.of_training([video(fps, 10)] * 3, ClipConfig(16, 4, 224, sampling))
    # Of `dense` the frames are spread over the 64, the first and the last included.
    assert found.median == pytest.approx(64 / fps, rel=0.08 if sampling == "dense" else 0.01)
    assert found.fps == (fps, fps, fps) and found.short == 0 and found.uneven == 0
    assert found.text() == f"{found.median:.3g} s, {fps} frames/s"


@pytest.mark.parametrize("sampling", ["uniform", "segments", "stepped", "parts"])
@pytest.mark.parametrize("fps", [12, 60])
def test_a_clip_over_the_whole_video_spans_it_at_any_rate(fps, sampling):
    found = seconds.of_training([video(fps, 10)] * 8, ClipConfig(8, 1, 224, sampling))
    assert found.median == pytest.approx(10, rel=0.15)


def test_the_clock_spans_the_same_at_variable_rate():
    clip = ClipConfig(16, 4, 224, "clock")  # of 20 frames/s: every 0.2 s
    found = seconds.of_training([variable()] * 8, clip)
    assert found.median == pytest.approx(3.2, rel=0.05) and found.uneven == 1
    by_index = seconds.of_training([variable()] * 40, ClipConfig(16, 4, 224, "window"))
    assert by_index.high > 1.5 * by_index.low
    assert "100% of videos of variable rate" in by_index.text()


def test_a_set_of_mixed_rates_and_lengths():
    videos = [video(30, 10)] * 6 + [video(60, 10)] * 2 + [video(30, 1)] * 2
    found = seconds.of_training(videos, ClipConfig(16, 4, 224, "window"))
    assert found.videos == 10 and found.short == pytest.approx(0.2)
    assert found.median == pytest.approx(64 / 30, rel=0.01)
    # Of a second only eight different frames are left, the rest repeats the last.
    assert found.low == pytest.approx(32 / 30, rel=0.2)
    text = found.text()
    assert "30 to 60 frames/s, rates are mixed" in text
    assert "20% of videos shorter than a clip, which repeats frames" in text
    assert found.as_plain() == {
        "videos": 10, "median": 2.1333, "low": round(found.low, 4), "high": 2.1333,
        "short": 0.2, "uneven": 0.0, "fps": [30.0, 30.0, 60.0],
    }  # fmt: skip


def test_the_views_of_a_test():
    views = ViewConfig(ClipConfig(16, 4, 224, "dense"), clips=5)
    assert seconds.of_views([video(25, 10)] * 3, views).median == pytest.approx(64 / 25)
    # A rule without a clip of so few frames: they are short, and have no seconds.
    sparse = ViewConfig(ClipConfig(16, 4, 224, "sparse"))
    found = seconds.of_views([video(25, 10), video(25, 0.4)], sparse)
    assert found.short == 0.5 and found.videos == 2


def test_images_have_no_seconds():
    assert seconds.of_training([video(25, 10)], ClipConfig(1, 1, 224, "uniform")).videos == 0
    assert seconds.of_training([FrameTimes((0,), 1.0)], ClipConfig(8, 1, 224)).videos == 0
    assert "no video of several frames" in seconds.Spans(0).text()


@pytest.mark.parametrize(
    ("here", "there", "times"), [(2.0, 2.9, 0), (2.0, 3.1, 1.55), (5.3, 2.1, 5.3 / 2.1), (0, 2, 0)]
)
def test_spans_that_are_told_apart(here, there, times):
    assert seconds.difference(here, there) == pytest.approx(times)


def test_the_stride_that_fits():
    clip = ClipConfig(16, 4, 224, "window")
    found = seconds.of_training([video(12, 10)], clip)
    assert seconds.fitting_stride(clip, found, 64 / 30) == 2
    assert seconds.fitting_stride(ClipConfig(16, 4, 224, "uniform"), found, 2.0) == 0
    assert seconds.fitting_stride(clip, found, found.median) == 0


def test_a_split_knows_its_frame_times(shards):
    dataset = open_dataset(str(shards), "train")
    assert len(dataset.frame_times) == 60 and dataset.frame_times is dataset.frame_times
    first = dataset.frame_times[0]
    assert len(first.times_us) == 20 and first.fps == pytest.approx(12)
    np.testing.assert_allclose(np.diff(first.times_us), 1e6 / 12, atol=2)
