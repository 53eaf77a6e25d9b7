"""Frame indices beyond the golden cases: ranges, short videos, random rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import sampling


def reference_window(n: int, T: int, r: int, start: int) -> list[int]:
    """The released loop, word for word in effect."""
    frames, at = [], start
    for _ in range(T):
        frames.append(at)
        if at + 1 + r < n:
            at += r
    return frames


@given(n=st.integers(1, 400), T=st.integers(1, 40), r=st.integers(1, 8), share=st.floats(0, 1))
def test_window_equals_the_released_loop(n, T, r, share):
    start = int(share * (sampling.window_starts(n, T, r) - 1))
    assert sampling.window(n, T, r, start).tolist() == reference_window(n, T, r, start)


@pytest.mark.parametrize("rule", sorted(sampling.TRAIN))
@given(n=st.integers(1, 300), T=st.integers(1, 32), r=st.integers(1, 6), seed=st.integers(0, 99))
def test_training_rules_stay_inside_the_video(rule, n, T, r, seed):
    rng = np.random.default_rng(seed)
    if rule == "sparse" and n < T:
        with pytest.raises(ValueError, match="sparse sampling of"):
            sampling.TRAIN[rule](n, T, r, rng)
        return
    frames = sampling.TRAIN[rule](n, T, r, rng)
    assert frames.shape == (T,) and frames.min() >= 0 and frames.max() < n
    assert (np.diff(frames) >= 0).all()


@pytest.mark.parametrize("rule", sorted(sampling.VIEWS))
@given(n=st.integers(1, 300), T=st.integers(1, 32), r=st.integers(1, 6), s=st.integers(1, 5))
def test_view_rules_stay_inside_the_video(rule, n, T, r, s):
    if rule == "sparse" and n < T and s == 1:
        return
    views = sampling.VIEWS[rule](n, T, r, s)
    assert views.shape == (s, T) and views.min() >= 0 and views.max() < n


def test_random_rules_use_the_whole_range():
    rng = np.random.default_rng(0)
    starts = {int(sampling.TRAIN["window"](50, 8, 4, rng)[0]) for _ in range(500)}
    assert starts == set(range(50 - 32 + 1))
    first = {int(sampling.segments_random(32, 8, rng)[0]) for _ in range(200)}
    assert first == {0, 1, 2, 3}
    sparse = {int(sampling.sparse_random(32, 8, rng)[0]) for _ in range(200)}
    assert sparse == {0, 1, 2}  # the last frame of a part is never drawn


def test_short_videos():
    # Fewer frames than the clip: zeros in front for segments, the last frame repeated for windows.
    assert sampling.segments_center(3, 5).tolist() == [0, 0, 0, 1, 2]
    assert sampling.dense_center(3, 4, 4).tolist() == [2, 2, 2, 2]
    assert sampling.window(1, 3, 2, 0).tolist() == [0, 0, 0]
