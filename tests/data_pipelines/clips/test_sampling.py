"""Frame indices beyond the golden cases: ranges, short videos, random rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.clips import sampling
from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from data_pipelines.records.dataset import open_dataset
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from tests.data_pipelines.sets import write_set


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


@given(n=st.integers(1, 300), T=st.integers(1, 32), seed=st.integers(0, 99))
def test_uniform_random_draws_one_frame_of_each_part(n, T, seed):
    frames = sampling.uniform_random(n, T, np.random.default_rng(seed))
    edges = [int(edge) for edge in np.linspace(0, n, min(n, T) + 1)]
    parts = list(itertools.pairwise(edges))
    if all(end - 1 > start for start, end in parts):
        assert all(
            start <= frame < end - 1 for frame, (start, end) in zip(frames, parts, strict=True)
        )
    else:
        drawn = frames[: min(n, T)]
        assert (np.diff(drawn) > 0).all() and (frames[len(drawn) :] == drawn[-1]).all()


def test_uniform_rules_use_the_whole_range():
    rng = np.random.default_rng(0)
    drawn = np.array([sampling.uniform_random(32, 8, rng) for _ in range(200)])
    assert {int(frame) for frame in drawn[:, 0]} == {0, 1, 2}
    # Parts of one frame: any different frames, all of them in turn.
    assert {int(sampling.uniform_random(5, 4, rng)[0]) for _ in range(200)} == {0, 1}


def test_rules_at_a_rate_pad_nothing():
    assert sampling.at_rate(4, 10, 1).tolist() == []
    assert sampling.at_rate(300, 30, 2).tolist()[:3] == [8, 22, 38]  # 7.5, 22.5, 37.5 to even
    assert sampling.at_rate(300, 30, 2, 4).shape == (4,)
    assert sampling.thinned(30, 8, 25).tolist() == [0, 25]


@pytest.mark.parametrize("tick", [1, 1000], ids=["microseconds", "milliseconds"])
def test_by_time_equals_index_arithmetic_where_frames_are_even(tick):
    # 30 frames/s, rounded as containers do: 15 frames/s is every second frame.
    times = np.round(np.arange(90) * 1e6 / 30 / tick).astype(np.int64) * tick + 12345
    assert sampling.by_time(times, 16, 15).tolist() == list(range(0, 32, 2))
    assert sampling.by_time(times, 90, 30).tolist() == list(range(90))
    # Beyond the rate of the video frames repeat, beyond its end the last one does.
    assert sampling.by_time(times, 7, 90).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert sampling.by_time(times, 4, 1, start_us=1_000_000).tolist() == [30, 60, 89, 89]


def test_by_time_keeps_the_speed_of_variable_frame_rate():
    # One second at 10 frames/s, then one at 50: ten instants a second see both alike.
    times = np.concatenate([np.arange(10) * 100_000, 1_000_000 + np.arange(50) * 20_000])
    frames = sampling.by_time(times, 20, 10)
    assert frames.tolist() == [*range(10), *range(10, 60, 5)]
    np.testing.assert_array_equal(times[frames], np.arange(20) * 100_000)


@given(
    gaps=st.lists(st.integers(0, 10**6), min_size=0, max_size=40),
    first=st.integers(-(10**9), 10**12),
    T=st.integers(1, 20),
    fps=st.floats(0.1, 240),
    start=st.integers(0, 10**7),
)
def test_by_time_gives_the_nearest_frame(gaps, first, T, fps, start):
    times = np.cumsum([first, *gaps])
    for step, frame in enumerate(sampling.by_time(times, T, fps, start)):
        distance = np.abs(times - (first + start + round(step * 1e6 / fps)))
        assert distance[frame] == distance.min()
    assert 0 <= sampling.by_time_starts(times, T, fps) <= sum(gaps)


@pytest.mark.parametrize(
    ("times", "fps", "message"),
    [
        ([], 10, "at least one frame"),
        ([0, 40, 20], 10, "number 2 is 20 us after 40 us"),
        ([0, 40], 0, "fps must be positive"),
    ],
)
def test_by_time_refuses(times, fps, message):
    with pytest.raises(ValueError, match=message):
        sampling.by_time(np.array(times), 4, fps)


FAST_THEN_SLOW = (*range(0, 480_000, 40_000), *range(480_000, 1_680_001, 100_000))


def shown(clip: np.ndarray, frames: list[np.ndarray]) -> list[int]:
    """Which of the frames (H, W, 3) the images of a clip (T, H, H, 3) are, by their middles."""
    side = clip.shape[1]
    left = (frames[0].shape[1] - side) // 2
    middles = np.stack([frame[:side, left : left + side] for frame in frames]).astype(int)
    return [int(np.abs(middles - picture).mean((1, 2, 3)).argmin()) for picture in clip]


def test_the_clock_keeps_the_speed_in_streams_and_passes(tmp_path):
    """25 images a second, then 10: index arithmetic would show the beginning in slow motion."""
    times = np.array(FAST_THEN_SLOW)
    shards = write_set(tmp_path / "set", 2, frames=len(times), times_us=FAST_THEN_SLOW)
    clip = ClipConfig(frames=5, stride=2, resolution=40, sampling="clock")  # 0.2 s apart
    stored = open_dataset(str(shards), "train")
    frames = [stored.frames(i, stored.load(i), np.arange(len(times))) for i in range(2)]
    views = ViewPass(str(shards), "train", ViewConfig(clip=clip, clips=3, batch=2))
    batch = next(iter(views))
    for row, index in enumerate(batch["index"]):
        start = (0, 440_000, 880_000)[batch["view"][row]]
        wanted = [int(np.abs(times - start - 200_000 * t).argmin()) for t in range(5)]
        assert shown(batch["video"][row], frames[index]) == wanted
    config = DataConfig(train=str(shards), global_batch=4, clip=clip, crop="center")
    stream = TrainStream(config)
    starts = set()
    for _ in range(4):
        batch = next(stream)
        for video, index in zip(batch["video"], batch["index"], strict=True):
            found = times[shown(video, frames[index])]
            # Nearest frames: half a gap at either end.
            assert (np.abs(np.diff(found) - 200_000) <= 100_000).all()
            starts.add(found[0])
    stream.close()
    assert len(starts) > 4


def test_the_clock_is_the_stride_where_frames_are_even():
    times, rng = [40_000 * i for i in range(60)], np.random.default_rng(0)
    views = sampling.view_frames("clock", times, 25.0, 8, 4, 2)
    assert views.tolist() == [list(range(0, 32, 4)), list(range(31, 60, 4))]
    drawn = sampling.train_frames("clock", times, 25.0, 8, 4, rng)
    assert np.diff(drawn).tolist() == [4] * 7
    short = sampling.train_frames("clock", times[:10], 25.0, 8, 4, rng)
    assert short.tolist() == [0, 4, 8, 9, 9, 9, 9, 9]


# Videos of 3, 8 and 12 frames for clips of 8 at stride 2: shorter than the clip, as long, shorter
# than the window of 16.
SHORT, T, STRIDE, SEGMENTS = (3, 8, 12), 8, 2, 3


def padded_train(rule: str, n: int) -> list[set[int]]:
    """Frames that each place of a training clip may show, by the rules as the spec writes them."""
    if rule == "window":
        return [{frame} for frame in reference_window(n, T, STRIDE, 0)]
    if rule == "dense":
        points = n // STRIDE
        spread = [int(n * i / (points - 1)) for i in range(points)] if points > 1 else [0] * points
        return [{min(frame, n - 1)} for frame in spread + [n] * (T - points)]
    if rule == "segments" and n < T:
        return [{frame} for frame in [0] * (T - n) + list(range(n))]
    if rule == "stepped":
        borders = [round((n - 1) / T * i) for i in range(T + 1)]
        return [set(range(borders[i], borders[i + 1] + 1)) for i in range(T)]
    assert rule in ("segments", "sparse") and n // T == 1
    return [{i} for i in range(T)]


def padded_views(rule: str, n: int) -> list[list[int]]:
    """The frames of SEGMENTS views, by the rules as the spec writes them."""
    if rule == "dense":
        frames = list(range(0, n, STRIDE))
        frames += [frames[-1]] * (T - len(frames))
        return [frames[:T]] * SEGMENTS  # never more than T at this length
    if rule == "stepped":
        length, borders = (n - 1) / T, [round((n - 1) / T * i) for i in range(T)]
        offsets = [int(length / (SEGMENTS + 1) * (c + 1)) for c in range(SEGMENTS)]
        return [[min(border + offset, n - 1) for border in borders] for offset in offsets]
    tick = n / T
    pairs = itertools.product(range(SEGMENTS), range(T))
    every = sorted(int(s * tick / SEGMENTS + tick * i) for s, i in pairs)
    return [every[c::SEGMENTS] for c in range(SEGMENTS)]


@pytest.fixture(scope="module")
def short_sets(tmp_path_factory):
    """Number of frames -> (directory, the frames of its two videos)."""
    found = {}
    for n in SHORT:
        shards = write_set(tmp_path_factory.mktemp("short") / f"of{n}", 2, frames=n)
        stored = open_dataset(str(shards), "train")
        frames = [stored.frames(i, stored.load(i), np.arange(n)) for i in range(2)]
        found[n] = str(shards), frames
    return found


@pytest.mark.parametrize("n", SHORT)
@pytest.mark.parametrize("rule", ["window", "dense", "segments", "sparse", "stepped"])
def test_a_stream_pads_short_videos_as_the_reference(short_sets, rule, n):
    directory, frames = short_sets[n]
    clip = ClipConfig(frames=T, stride=STRIDE, resolution=40, sampling=rule)
    stream = TrainStream(DataConfig(train=directory, global_batch=4, clip=clip, crop="center"))
    if rule == "sparse" and n < T:
        with pytest.raises(ValueError, match=r"record \d.*sparse sampling of 8 frames"):
            next(stream)
    else:
        allowed = padded_train(rule, n)
        for _ in range(2):
            batch = next(stream)
            for video, index in zip(batch["video"], batch["index"], strict=True):
                found = shown(video, frames[index])
                assert all(f in may for f, may in zip(found, allowed, strict=True)), found
    stream.close()


@pytest.mark.parametrize("n", SHORT)
@pytest.mark.parametrize("rule", ["dense", "segments", "sparse", "stepped"])
def test_a_pass_pads_short_videos_as_the_reference(short_sets, rule, n):
    directory, frames = short_sets[n]
    clip = ClipConfig(frames=T, stride=STRIDE, resolution=40, sampling=rule)
    views = ViewPass(directory, "train", ViewConfig(clip=clip, clips=SEGMENTS, batch=2))
    batch = next(views)
    wanted = padded_views(rule, n)
    for video, index, view in zip(batch["video"], batch["index"], batch["view"], strict=True):
        assert shown(video, frames[index]) == wanted[view]
    views.close()
    # One segment is the validation rule; `sparse` has none for fewer frames than the clip.
    views = ViewPass(directory, "train", ViewConfig(clip=clip, batch=2))
    if rule == "sparse" and n < T:
        with pytest.raises(ValueError, match=r"record \d.*sparse sampling of 8 frames"):
            next(views)
    elif rule != "stepped":
        batch = next(views)
        for video, index in zip(batch["video"], batch["index"], strict=True):
            assert all({f} == may for f, may in zip(
                shown(video, frames[index]), padded_train(rule, n), strict=True
            ))  # fmt: skip
    views.close()
