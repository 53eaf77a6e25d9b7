"""Which frames of a video make a clip: pure index arithmetic, zero-based.

Names in all functions: n frames in the video, T frames in a clip, r stride. Functions that draw
take a `numpy.random.Generator`. Each rule is the one that the published weights were trained or
tested with (VideoMAE, VideoMAE V2, InternVideo1), padding of short videos included.
"""

from __future__ import annotations

import numpy as np


def window_starts(n: int, T: int, r: int) -> int:
    """Number of start frames that `window` may draw from; at least 1."""
    return max(n - T * r + 1, 1)


def window(n: int, T: int, r: int, start: int) -> np.ndarray:
    """Pre-training: T frames at exact stride r; where the video ends the last one repeats.

    Returns:
      (T,) int64.
    """
    steps = start + r * np.arange(T)
    # The pointer advances only while the next step stays before the last frame.
    last = start + r * max((n - 2 - start) // r, 0)
    return np.minimum(steps, last)


def _dense_span(n: int, T: int, r: int, end: int) -> np.ndarray:
    """T frames spread over the T*r frames that end at `end`; short videos fill with the last."""
    span = T * r
    if n > span:
        indices = np.linspace(end - span, end, T)
        return np.clip(indices, end - span, end - 1).astype(np.int64)
    spread = np.linspace(0, n, n // r) if n >= r else np.zeros(0)
    indices = np.concatenate([spread, np.full(T - len(spread), n)])
    return np.clip(indices, 0, n - 1).astype(np.int64)


def dense_random(n: int, T: int, r: int, rng: np.random.Generator) -> np.ndarray:
    """Fine-tuning on Kinetics-like videos: T frames over a random window of T*r frames.

    The spacing is T*r/(T-1), not r, as in the reference; only the test views are at stride r.
    """
    end = int(rng.integers(T * r, n)) if n > T * r else n
    return _dense_span(n, T, r, end)


def dense_center(n: int, T: int, r: int) -> np.ndarray:
    """Validation on Kinetics-like videos: as `dense_random`, the window in the middle."""
    return _dense_span(n, T, r, (T * r + n) // 2)


def dense_views(n: int, T: int, r: int, segments: int) -> np.ndarray:
    """Test on Kinetics-like videos: `segments` windows at exact stride, evenly placed.

    Returns:
      (segments, T) int64; at least two segments, the reference divides by segments - 1.
    """
    indices = list(range(0, n, r))
    indices += [indices[-1]] * (T - len(indices))
    step = max((len(indices) - T) / (segments - 1), 0)
    starts = [int(view * step) for view in range(segments)]
    return np.array([indices[start : start + T] for start in starts], np.int64)


def _front_padded(n: int, T: int) -> np.ndarray:
    return np.concatenate([np.zeros(T - n, np.int64), np.arange(n)])


def segments_random(n: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """Training on Something-Something: one random frame from each of T equal parts.

    Videos shorter than T are padded with frame 0 at the front.
    """
    part = n // T
    if part == 0:
        return _front_padded(n, T)
    return np.arange(T) * part + rng.integers(part, size=T)


def segments_center(n: int, T: int) -> np.ndarray:
    """Validation on Something-Something: the middle frame of each of T equal parts."""
    part = n // T
    if part == 0:
        return _front_padded(n, T)
    return np.arange(T) * part + part // 2


def segments_views(n: int, T: int, segments: int) -> np.ndarray:
    """Test on Something-Something: `segments` interleaved sets of T evenly spaced frames.

    Returns:
      (segments, T) int64; together the sorted union of all offsets, dealt out in turn.
    """
    tick = n / T
    every = sorted(
        int(segment * tick / segments + tick * i) for segment in range(segments) for i in range(T)
    )
    return np.array([every[segment::segments] for segment in range(segments)], np.int64)


def sparse_random(n: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """`--sparse_sample` on video files: one frame of each part, never the last of a part."""
    part = _sparse_part(n, T)
    return np.arange(T) * part + (rng.integers(part - 1, size=T) if part > 1 else 0)


def sparse_center(n: int, T: int) -> np.ndarray:
    """`--sparse_sample` validation."""
    part = _sparse_part(n, T)
    return np.arange(T) * part + (1 + part) // 2 - 1


def _sparse_part(n: int, T: int) -> int:
    # The reference returns frame -1 here.
    if n < T:
        raise ValueError(f"sparse sampling of {T} frames needs as many in the video, found {n}")
    return n // T


# Training: (n, T, r, generator) -> (T,).
TRAIN = {
    "window": lambda n, T, r, rng: window(n, T, r, int(rng.integers(window_starts(n, T, r)))),
    "dense": dense_random,
    "segments": lambda n, T, r, rng: segments_random(n, T, rng),
    "sparse": lambda n, T, r, rng: sparse_random(n, T, rng),
}

# Evaluation: (n, T, r, segments) -> (segments, T). A single view is the validation rule.
VIEWS = {
    "dense": lambda n, T, r, s: dense_center(n, T, r)[None] if s == 1 else dense_views(n, T, r, s),
    "segments": lambda n, T, r, s: (
        segments_center(n, T)[None] if s == 1 else segments_views(n, T, s)
    ),
    "sparse": lambda n, T, r, s: sparse_center(n, T)[None] if s == 1 else segments_views(n, T, s),
}
