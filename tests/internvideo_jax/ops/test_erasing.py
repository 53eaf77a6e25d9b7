"""Random erasing: boxes of the wanted statistics, the fill of each mode, no meeting of examples."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.ops.erasing import erase, erasing_boxes
from internvideo_jax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD

KEYS = jax.random.split(jax.random.key(0), 4000)


def jitted(function, **settings):
    return jax.jit(functools.partial(function, **settings))


def test_boxes_have_the_wanted_statistics():
    draw = jitted(erasing_boxes, height=60, width=80, probability=0.25)
    boxes = np.asarray(draw(KEYS))
    y0, y1, x0, x1 = boxes.T
    erased = y1 > y0
    assert 0.22 < erased.mean() < 0.28 and not boxes[~erased].any()
    y0, y1, x0, x1 = boxes[erased].T
    assert y0.min() == 0 and x0.min() == 0 and y1.max() == 60 and x1.max() == 80
    height, width = y1 - y0, x1 - x0
    assert height.max() < 60 and width.max() < 80
    area = height * width / 4800
    assert 0.015 < area.min() < 0.03 and 0.32 < area.max() < 0.345
    assert 0.15 < area.mean() < 0.19
    ratio = np.log(height / width)
    assert np.abs(ratio).max() < 1.3 and np.abs(ratio).mean() > 0.4


def test_a_box_that_cannot_fit_leaves_the_clip_whole():
    whole = {"probability": 1.0, "area": (1.0, 1.0), "ratio": (1.0, 1.0)}
    draw = jitted(erasing_boxes, height=20, width=20, **whole)
    assert not np.asarray(draw(KEYS[:50])).any()


def erased_clip(mode: str) -> tuple[np.ndarray, tuple[slice, slice]]:
    video = jnp.full((1, 3, 40, 50, 3), 7.0)
    key = KEYS[:1]
    out = np.asarray(jitted(erase, probability=1.0, mode=mode)(video, key))[0]
    changed = (out != 7.0).any(axis=(0, 3))
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    assert changed[box].all()  # one box, the same in all frames
    return out[(slice(None), *box)], box


def test_constant_fill():
    filled, _ = erased_clip("const")
    assert not filled.any()


def test_one_colour_per_frame():
    filled, _ = erased_clip("rand")
    colours = filled[:, 0, 0]
    assert (filled == colours[:, None, None]).all()
    assert len(np.unique(colours)) == 9


def test_noise_per_pixel_and_frame():
    filled, _ = erased_clip("pixel")
    assert len(np.unique(filled)) > 0.99 * filled.size
    assert abs(filled.mean()) < 0.1 and 0.9 < filled.std() < 1.1


def test_erasing_before_and_after_normalising_is_the_same():
    video = np.random.default_rng(0).random((6, 2, 20, 20, 3), np.float32)
    mean, std = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
    before = jitted(erase, probability=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD)(video, KEYS[:6])
    after = jitted(erase, probability=1.0)((video - mean) / std, KEYS[:6])
    np.testing.assert_allclose((before - mean) / std, after, atol=1e-5)


def test_an_example_depends_on_its_own_key_only():
    video = np.random.default_rng(0).random((8, 2, 20, 20, 3), np.float32)
    run = jitted(erase, probability=0.5)
    whole = np.asarray(run(video, KEYS[:8]))
    untouched = [bool((whole[i] == video[i]).all()) for i in range(8)]
    assert any(untouched) and not all(untouched)
    order = np.array([3, 0, 7, 1, 2, 6, 5, 4])
    np.testing.assert_array_equal(run(video[order], KEYS[:8][order]), whole[order])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "noise"}, "unknown erasing mode 'noise'"),
        ({"probability": 1.5}, "probability"),
        ({"area": (0.3, 0.2)}, "area"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        erase(jnp.zeros((1, 1, 8, 8, 3)), KEYS[:1], **{"probability": 1.0, **settings})


def test_integer_pixels_are_refused():
    with pytest.raises(ValueError, match="float pixels, found uint8"):
        erase(jnp.zeros((1, 1, 8, 8, 3), jnp.uint8), KEYS[:1], probability=1.0)
