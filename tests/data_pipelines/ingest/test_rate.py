"""Which frames are kept at a lower rate."""

from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.ingest.rate import RateSampler

# 25 per second for a second, then 5 per second; and the other way round.
SLOWER = [40_000 * min(i, 25) + 200_000 * max(0, i - 25) for i in range(50)]
FASTER = [200_000 * min(i, 25) + 40_000 * max(0, i - 25) for i in range(50)]


def kept(times, fps, rate) -> list[int]:
    sampler = RateSampler(fps, Fraction(rate).limit_denominator(1001))
    return [i for _, i in sampler.sample((t, i) for i, t in enumerate(times))]


@pytest.mark.parametrize("rate", [25, Fraction(625, 69), 100, 5])
def test_the_rate_of_the_header_does_not_matter(rate):
    assert kept(SLOWER, 12.5, rate) == [*range(0, 25, 2), *range(26, 50)]
    assert kept(SLOWER, 5, rate) == [0, 5, 10, 15, 20, *range(25, 50)]
    assert kept(FASTER, 12.5, rate) == [*range(25), 25, *range(26, 50, 2)]
    assert kept(FASTER, 5, rate) == [*range(26), 30, 35, 40, 45]
    assert kept(SLOWER, 25, rate) == kept(SLOWER, 60, rate) == list(range(50))


@pytest.mark.parametrize("fps", [5, 7.5, 10, 12, 20, 24, 25, 29.97, 30])
@pytest.mark.parametrize("rate", [24, 25, Fraction(30000, 1001), 30, 60])
@pytest.mark.parametrize("rounded", [1, 1000])
def test_a_steady_rate_keeps_the_nearest_frames(fps, rate, rounded):
    """Against the rule written out; times are rounded as in MP4 and in Matroska."""
    times = [round(i * 1e6 / float(rate) / rounded) * rounded for i in range(900)]
    found = kept(times, fps, rate)
    step, half = Fraction(1_000_000) / Fraction(fps), Fraction(500_000) / Fraction(rate)
    expected, due = [], 0
    for i, t in enumerate(times):
        if rate <= fps or (t + half) // step >= due:
            expected.append(i)
            due = (t + half) // step + 1
    assert found == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_more_than_asked_for_and_none_twice(seed):
    times = [0, *map(int, np.cumsum(np.random.default_rng(seed).integers(5, 400, 300)) * 1000)]
    for fps in (2, 5, 8):
        found = kept(times, fps, 25)
        assert found == sorted(set(found)) and found[0] == 0
        for low in range(0, times[-1], 500_000):
            assert sum(low <= times[i] < low + 2_000_000 for i in found) <= 2 * fps + 1


@pytest.mark.parametrize("seed", range(3))
def test_times_that_jitter_lose_nothing_at_their_own_rate(seed):
    jitter = np.random.default_rng(seed).integers(-5000, 5001, 3000)
    times = (np.arange(3000) * 1e6 / 29.97 + jitter).astype(int).tolist()
    assert len(kept(times, 30, 29.97)) == 3000
    assert len(kept(times, 10, 29.97)) == pytest.approx(1001, abs=2)


def test_a_frame_after_a_pause_is_taken_once():
    times = [0, 40_000, 80_000, 60_000_000, 60_040_000, 60_080_000, 60_120_000]
    assert kept(times, 12.5, 25) == [0, 2, 3, 5]


def test_one_and_no_frame():
    assert kept([7], 5, 25) == [0] and kept([], 5, 25) == []
