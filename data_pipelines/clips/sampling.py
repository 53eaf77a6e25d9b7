"""Which frames of a video make a clip: pure index arithmetic, zero-based.

Names in all functions: n frames in the video, T frames in a clip, r stride. Functions that draw
take a `numpy.random.Generator`. Each rule is the one that the published weights were trained or
tested with (VideoMAE, VideoMAE V2, InternVideo1, UniFormerV2, ViCLIP, InternVideo2), padding of
short videos included. `by_time` is ours, for videos whose frames are not evenly spaced in time.
Streams and passes choose by name, through `train_frames` and `view_frames`.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def dense_views(n: int, T: int, r: int, clips: int) -> np.ndarray:
    """Test on Kinetics-like videos: `clips` windows at exact stride, evenly placed.

    Returns:
      (clips, T) int64; at least two clips, the reference divides by clips - 1.
    """
    indices = list(range(0, n, r))
    indices += [indices[-1]] * (T - len(indices))
    step = max((len(indices) - T) / (clips - 1), 0)
    starts = [int(view * step) for view in range(clips)]
    return np.array([indices[start : start + T] for start in starts], np.int64)


def strided_views(n: int, T: int, r: int, clips: int) -> np.ndarray:
    """Test of InternVideo2 on UCF101: `clips` windows of T*r frames, the last from n - T*r on.

    Starts are counted in frames, where `dense_views` counts them in steps of the stride. A window
    that the end of the video cuts repeats its own last frame.

    Returns:
      (clips, T) int64; at least two clips, the reference divides by clips - 1.
    """
    step = max((n - T * r) / (clips - 1), 0)
    starts = [int(view * step) for view in range(clips)]
    return np.stack([_repeat_last(np.arange(s, min(s + T * r, n), r), T) for s in starts])


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


def parts_random(n: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """InternVideo2 stage 1: as `segments_random`, but shorter videos give their first frame alone.

    The reference takes the frame before each of these, counted from zero, and so the last frame of
    the file in place of frame -1. That is not repeated here.
    """
    return segments_random(n, T, rng) if n >= T else np.zeros(T, np.int64)


def segments_center(n: int, T: int) -> np.ndarray:
    """Validation on Something-Something: the middle frame of each of T equal parts."""
    part = n // T
    if part == 0:
        return _front_padded(n, T)
    return np.arange(T) * part + part // 2


def segments_views(n: int, T: int, clips: int) -> np.ndarray:
    """Test on Something-Something: `clips` interleaved sets of T evenly spaced frames.

    Returns:
      (clips, T) int64; together the sorted union of all offsets, dealt out in turn.
    """
    tick = n / T
    every = sorted(int(clip * tick / clips + tick * i) for clip in range(clips) for i in range(T))
    return np.array([every[clip::clips] for clip in range(clips)], np.int64)


def segments_tested(n: int, T: int, clips: int) -> np.ndarray:
    """`segments_center` for one clip, `segments_views` for several; (clips, T) int64."""
    return segments_center(n, T)[None] if clips == 1 else segments_views(n, T, clips)


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
        raise ValueError(
            f"sparse sampling of {T} frames needs as many in the video, found {n}; the reference "
            "has no rule for shorter ones. Leave the video out at ingest (--min-frames), or take "
            "clip.sampling=segments, which pads"
        )
    return n // T


def _steps(n: int, T: int) -> tuple[np.ndarray, float]:
    """Borders (T + 1,) of T parts of (n - 1) / T frames, rounded half to even, and that length."""
    length = max(0.0, (n - 1) / T)
    return np.round(length * np.arange(T + 1)).astype(np.int64), length


def stepped_random(n: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """UniFormerV2 training: one random frame from each of T parts, both borders included.

    Neighbouring parts share a border, so a frame may come twice; short videos repeat frames.
    """
    borders, _ = _steps(n, T)
    return rng.integers(borders[:-1], borders[1:], endpoint=True)


def stepped_views(n: int, T: int, clips: int) -> np.ndarray:
    """UniFormerV2 validation (one clip) and test: a fixed place in each of T parts.

    Segment c of V lies (c + 1) / (V + 1) of a part after its start. Something-Something, whose
    files are numbered from one, has the same rule.

    Returns:
      (clips, T) int64.
    """
    borders, length = _steps(n, T)
    offsets = [int(length / (clips + 1) * (clip + 1)) for clip in range(clips)]
    return np.minimum(borders[:-1] + np.array(offsets, np.int64)[:, None], max(n - 1, 0))


def window_views(n: int, T: int, r: int, clips: int, *, to_end: bool) -> np.ndarray:
    """SlowFast's dense test: `clips` windows of T*r frames, T frames spread over each.

    Args:
      to_end: the last window ends with the video; else the windows start at equal shares of the
        room, the last share unused. A single window is then the middle or the first one.

    Returns:
      (clips, T) int64; beyond the end the last frame repeats.
    """
    room = max(n - T * r, 0)
    if not to_end:
        starts = [room * clip / clips for clip in range(clips)]
    elif clips == 1:
        starts = [room // 2]
    else:
        starts = [clip * (room // (clips - 1)) for clip in range(clips)]
    rows = [_float_linspace(start, start + T * r - 1, T) for start in starts]
    return np.clip(np.array(rows), 0, n - 1).astype(np.int64)


def _float_linspace(start: float, end: float, T: int) -> np.ndarray:
    """torch.linspace: float32, from both ends to the middle. Truncation sees the difference."""
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(max(T - 1, 1))
    i = np.arange(T, dtype=np.float32)
    return np.where(i < T // 2, first + step * i, last - step * (T - 1 - i))


def _uniform_edges(n: int, T: int) -> np.ndarray:
    """Borders of min(n, T) parts that are as equal as whole frames allow."""
    return np.linspace(0, n, min(n, T) + 1).astype(np.int64)


def _repeat_last(frames: np.ndarray, T: int) -> np.ndarray:
    return np.pad(frames, (0, T - len(frames)), mode="edge")


def uniform_random(n: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """ViCLIP and InternVideo2 training (`rand`): one random frame from each of T equal parts.

    As in the reference the last frame of a part is never drawn, and where a part has but one frame
    any min(n, T) different frames are drawn instead. Shorter videos repeat the last index drawn.
    """
    edges = _uniform_edges(n, T)
    low, high = edges[:-1], edges[1:] - 1
    if (high > low).all():
        return rng.integers(low, high)
    return _repeat_last(np.sort(rng.permutation(n)[: len(low)]), T)


def uniform_center(n: int, T: int) -> np.ndarray:
    """ViCLIP and InternVideo2 evaluation (`middle`): the middle frame of each of T equal parts.

    Unlike `segments_center` the parts cover the whole video. Videos shorter than T repeat the last
    index; InternVideo-MM does not, its clip is the first min(n, T) indices.
    """
    edges = _uniform_edges(n, T)
    return _repeat_last((edges[:-1] + edges[1:] - 1) // 2, T)


def uniform_offset(n: int, T: int, offset: int) -> np.ndarray:
    """ViCLIP's `fix_start`: the frame `offset` after the start of each of T equal parts.

    As in the reference an offset beyond the parts gives an index beyond them, and beyond the video.
    """
    return _repeat_last(_uniform_edges(n, T)[:-1] + offset, T)


def linspace(n: int, T: int) -> np.ndarray:
    """InternVideo-MM demo: T frames from the first to the last, both included."""
    return np.linspace(0, n - 1, T).astype(np.int64)


def strided(n: int, T: int) -> np.ndarray:
    """ViCLIP demo: every (n // T)-th frame from the first on, T of them.

    Raises:
      ValueError: fewer than T frames; the reference asserts.
    """
    if n < T:
        raise ValueError(f"{T} frames at one stride needs as many in the video, found {n}")
    return np.arange(T) * (n // T)


def at_rate(n: int, fps: float, rate: float, T: int | None = None) -> np.ndarray:
    """ViCLIP's `fpsX`: the middle frame of each 1 / `rate` seconds of a video of `fps` frames/s.

    Returns:
      (m,) int64 with m <= T where T is given. Not padded: m is 0 where the video is shorter than
      half a step.
    """
    step = 1 / rate
    seconds = np.arange(step / 2, n / fps + step / 2, step)
    frames = np.around(seconds * fps).astype(np.int64)
    return frames[frames < n][:T]


def thinned(n: int, T: int, r: int) -> np.ndarray:
    """Text-video retrieval (CLIP4Clip): every r-th frame, evenly thinned to T if there are more.

    With r = fps this is a frame a second.

    Returns:
      (m,) int64, m <= T. Not padded: the reference fills the clip up with zeros.
    """
    frames = np.arange(0, n, r)
    return frames if len(frames) <= T else frames[linspace(len(frames), T)]


def by_time_starts(timestamps_us: np.ndarray, T: int, fps: float) -> int:
    """The latest start of `by_time` in microseconds after the first frame, at least 0."""
    duration = int(timestamps_us[-1]) - int(timestamps_us[0])
    return max(duration - round((T - 1) * 1e6 / fps), 0)


def by_time(timestamps_us: np.ndarray, T: int, fps: float, start_us: int = 0) -> np.ndarray:
    """T frames at `fps` on the clock: for each instant the frame nearest in time.

    For variable frame rate, where index arithmetic would change the speed. Nearest, as ffmpeg's
    `fps` filter does it, and not the latest before: containers round timestamps, Matroska to whole
    milliseconds, and an instant must not fall short of its own frame. Of two frames equally near
    the earlier counts; instants after the last timestamp give the last frame.

    Args:
      timestamps_us: (n,) not decreasing, microseconds; need not begin at 0.
      fps: wanted frames per second; above the rate of the video frames repeat.
      start_us: first instant, microseconds after the first frame.

    Returns:
      (T,) int64, not decreasing.

    Raises:
      ValueError: no timestamps, decreasing ones, fps not positive.
    """
    times = np.asarray(timestamps_us, np.int64)
    if times.ndim != 1 or not len(times):
        raise ValueError(f"by_time needs the timestamps of at least one frame, found {times.shape}")
    if (back := np.flatnonzero(np.diff(times) < 0)).size:
        raise ValueError(
            f"timestamps must not decrease; number {back[0] + 1} is {times[back[0] + 1]} us after "
            f"{times[back[0]]} us. Sample by index where only the order of the frames is known"
        )
    if not fps > 0:
        raise ValueError(f"fps must be positive, found {fps}")
    instants = times[0] + start_us + np.around(np.arange(T) * 1e6 / fps).astype(np.int64)
    after = np.clip(np.searchsorted(times, instants), 1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    return np.where(times[after] - instants < instants - times[before], after, before)


def clock_random(times: np.ndarray, T: int, fps: float, rng: np.random.Generator) -> np.ndarray:
    """`by_time` from a random start; what is after the end repeats the last frame."""
    return by_time(times, T, fps, int(rng.integers(by_time_starts(times, T, fps) + 1)))


def clock_views(times: np.ndarray, T: int, fps: float, clips: int) -> np.ndarray:
    """`by_time` from the middle (one clip), or from starts spread evenly from first to last.

    Returns:
      (clips, T) int64.
    """
    latest = by_time_starts(times, T, fps)
    starts = [latest // 2] if clips == 1 else np.linspace(0, latest, clips).round()
    return np.stack([by_time(times, T, fps, int(start)) for start in starts])


def but_last(n: int) -> int:
    """InternVideo2's reader of HMDB51 takes one from the number of frames in the list."""
    return max(n - 1, 0)


# Training: (n, T, r, generator) -> (T,).
TRAIN = {
    "window": lambda n, T, r, rng: window(n, T, r, int(rng.integers(window_starts(n, T, r)))),
    "dense": dense_random,
    "segments": lambda n, T, r, rng: segments_random(n, T, rng),
    "but_last": lambda n, T, r, rng: segments_random(but_last(n), T, rng),
    "parts": lambda n, T, r, rng: parts_random(n, T, rng),
    "sparse": lambda n, T, r, rng: sparse_random(n, T, rng),
    "uniform": lambda n, T, r, rng: uniform_random(n, T, rng),
    "stepped": lambda n, T, r, rng: stepped_random(n, T, rng),
}

# Evaluation: (n, T, r, clips) -> (clips, T). A single view is the validation rule.
VIEWS = {
    "dense": lambda n, T, r, s: dense_center(n, T, r)[None] if s == 1 else dense_views(n, T, r, s),
    # A single window is that of `dense`: the reference's own begins before the video.
    "windows": lambda n, T, r, s: (
        dense_center(n, T, r)[None] if s == 1 else strided_views(n, T, r, s)
    ),
    "segments": lambda n, T, r, s: segments_tested(n, T, s),
    "but_last": lambda n, T, r, s: segments_tested(but_last(n), T, s),
    # The test rule of `segments`, for a single view too: then the first frame of each part.
    "interleaved": lambda n, T, r, s: segments_views(n, T, s),
    "sparse": lambda n, T, r, s: sparse_center(n, T)[None] if s == 1 else segments_views(n, T, s),
    "uniform": lambda n, T, r, s: uniform_center(n, T)[None] if s == 1 else segments_views(n, T, s),
    "stepped": lambda n, T, r, s: stepped_views(n, T, s),
}

CLOCK = "clock"  # the one rule that looks at times: every r-th frame of a video of even rate

TRAIN_RULES = (*TRAIN, CLOCK)
VIEW_RULES = (*VIEWS, CLOCK)


def train_frames(
    rule: str, times: Sequence[int], fps: float, T: int, r: int, rng: np.random.Generator
) -> np.ndarray:
    """The frames of a training example.

    Args:
      rule: one of TRAIN_RULES.
      times: of all frames of the video, microseconds; only `clock` reads them.
      fps: nominal rate of the video; `clock` takes fps / r frames per second.

    Returns:
      (T,) int64.
    """
    if rule == CLOCK:
        return clock_random(np.asarray(times), T, fps / r, rng)
    return TRAIN[rule](len(times), T, r, rng)


def beginning(times: Sequence[int], seconds: float) -> Sequence[int]:
    """The frame times of the first `seconds` (DiDeMo: 30), the first one always; 0 = all."""
    if not seconds:
        return times
    values = np.asarray(times)
    end = values[0] + round(seconds * 1e6)
    return values[: max(1, int(np.searchsorted(values, end)))].tolist()


def view_frames(
    rule: str, times: Sequence[int], fps: float, T: int, r: int, clips: int
) -> np.ndarray:
    """The frames of every view in time, (clips, T) int64; arguments as in `train_frames`."""
    if rule == CLOCK:
        return clock_views(np.asarray(times), T, fps / r, clips)
    return VIEWS[rule](len(times), T, r, clips)
