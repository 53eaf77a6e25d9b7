"""Crops and resizes: inside the frame, the same for all frames, the wanted statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.clips import transforms

SIDES = st.integers(20, 400)


@given(height=SIDES, width=SIDES, size=st.integers(16, 256), seed=st.integers(0, 99))
def test_random_boxes_lie_inside_the_frame(height, width, size, seed):
    rng = np.random.default_rng(seed)
    for box in (
        transforms.multiscale_crop(height, width, size, rng)
        if size <= min(height, width)
        else (0, 0, 1, 1),
        transforms.random_resized_crop(height, width, rng),
    ):
        y, x, h, w = box
        assert min(y, x) >= 0 and min(h, w) > 0
        assert y + h <= height and x + w <= width


def test_random_resized_crop_covers_the_stated_range():
    rng = np.random.default_rng(0)
    boxes = np.array([transforms.random_resized_crop(200, 300, rng) for _ in range(3000)])
    area = boxes[:, 2] * boxes[:, 3] / 60000
    ratio = boxes[:, 3] / boxes[:, 2]
    # At this aspect ratio a box of ratio 4/3 covers at most 0.89 of the frame.
    assert 0.07 < area.min() < 0.1 and 0.85 < area.max() < 0.9
    assert 0.74 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.36
    # Nearly symmetric; large upright boxes do not fit into a wide frame and are drawn again.
    assert -0.01 < np.log(ratio).mean() < 0.06


def test_crops_tile_the_longer_side():
    assert transforms.crop_boxes(20, 27, 20, 3) == [(0, 0, 20, 20), (0, 3, 20, 20), (0, 7, 20, 20)]
    assert transforms.crop_boxes(27, 20, 20, 3, "slowfast")[1] == (4, 0, 20, 20)
    assert transforms.crop_boxes(20, 27, 20, 1) == [(0, 4, 20, 20)]
    assert [box[:2] for box in transforms.crop_boxes(30, 27, 20, 5, "corners")] == [
        (0, 0),
        (0, 7),
        (10, 0),
        (10, 7),
        (5, 4),
    ]
    with pytest.raises(ValueError, match="crop rule 'corners' with 3 crops"):
        transforms.crop_boxes(20, 27, 20, 3, "corners")
    with pytest.raises(ValueError, match="crop rule 'slowfast' with 2 crops"):
        transforms.crop_boxes(20, 27, 20, 2, "slowfast")


def clip(frames: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(frames)]


def test_crop_resize_of_the_same_size_copies():
    frames = clip()
    out = transforms.crop_resize(frames, (5, 7, 32, 32), 32)
    for t in range(3):
        assert (out[t] == frames[t][5:37, 7:39]).all()
    flipped = transforms.crop_resize(frames, (5, 7, 32, 32), 32, flip=True)
    assert (flipped == out[:, :, ::-1]).all()


def test_shrinking_averages_unless_told_otherwise():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 200
    smooth = transforms.crop_resize([stripes], (0, 0, 32, 32), 16)
    assert (smooth == 100).all()
    aliased = transforms.crop_resize([stripes], (0, 0, 32, 32), 12, method="bilinear")
    assert aliased.std() > 10


def test_repeated_frames_are_repeated_and_out_is_filled():
    one, two = clip(2)
    out = np.zeros((4, 16, 16, 3), np.uint8)
    result = transforms.crop_resize([one, one, two, one], (0, 0, 40, 40), 16, out=out)
    assert result is out
    assert (out[0] == out[1]).all() and (out[0] == out[3]).all() and (out[0] != out[2]).any()


def test_resize_short_side():
    frame = clip(1)[0]
    assert transforms.resize_short_side(frame, 20).shape == (20, 25, 3)
    assert transforms.resize_short_side(frame.transpose(1, 0, 2), 20).shape == (25, 20, 3)
    assert transforms.resize_short_side(frame, 40) is frame


def test_jittered_sides_and_random_boxes_reach_both_ends():
    rng = np.random.default_rng(0)
    sides = {transforms.jittered_side((8, 10), rng) for _ in range(100)}
    assert sides == {8, 9, 10}
    boxes = {transforms.random_box(20, 21, 19, rng) for _ in range(100)}
    assert boxes == {(y, x, 19, 19) for y in (0, 1) for x in (0, 1, 2)}


@pytest.mark.parametrize("method", transforms.RESIZE)
def test_resize_writes_into_the_row_it_is_given(method):
    frame = clip(1)[0]
    rows = np.zeros((2, 24, 16, 3), np.uint8)
    result = transforms.resize(frame, 24, 16, method, rows[1])
    assert np.shares_memory(result, rows) and not rows[0].any()
    assert (rows[1] == transforms.resize(frame, 24, 16, method)).all()
    strided = np.zeros((24, 32, 3), np.uint8)[:, ::2]
    assert (transforms.resize(frame, 24, 16, method, strided) == rows[1]).all()


@pytest.mark.parametrize("method", ["pil_bilinear", "pil_bicubic"])
def test_pil_filters_average_when_shrinking(method):
    stripes = np.zeros((32, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    middle = transforms.resize(stripes, 16, 16, method)[:, 2:-2]
    assert np.abs(middle.astype(int) - 100).max() <= 6
