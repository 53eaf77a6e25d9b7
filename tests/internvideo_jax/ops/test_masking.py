"""Masks: counts, order, independence of batch layout, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.ops import masking

GRID = (4, 6, 6)
KEY = jax.random.key(3)


@pytest.mark.parametrize("kind", ["tube", "random", "progressive", "centering"])
@pytest.mark.parametrize("mask_ratio", [0.5, 0.75, 0.9])
def test_visible_and_hidden_partition_the_tokens(kind, mask_ratio):
    keys = masking.example_keys(KEY, jnp.arange(5, dtype=jnp.uint32))
    visible, hidden = map(np.asarray, masking.sample(kind, keys, GRID, mask_ratio))
    assert visible.shape[1] == sum(masking.visible_per_frame(kind, GRID, mask_ratio))
    for seen, unseen in zip(visible, hidden, strict=True):
        assert sorted([*seen, *unseen]) == list(range(4 * 36))
        assert (np.diff(seen) > 0).all() and (np.diff(unseen) > 0).all()


def test_examples_have_different_masks():
    keys = masking.example_keys(KEY, jnp.arange(50, dtype=jnp.uint32))
    visible, _ = masking.sample("tube", keys, GRID, 0.75)
    assert len({tuple(row) for row in np.asarray(visible).tolist()}) == 50


def test_a_mask_depends_on_the_position_only():
    """Not on the batch it comes in: hosts, devices and microbatches may cut it anywhere."""
    whole = masking.example_keys(KEY, jnp.arange(8, dtype=jnp.uint32))
    part = masking.example_keys(KEY, jnp.arange(4, 6, dtype=jnp.uint32))
    for kind in ("tube", "random"):
        all_visible, _ = masking.sample(kind, whole, GRID, 0.75)
        some_visible, _ = masking.sample(kind, part, GRID, 0.75)
        np.testing.assert_array_equal(all_visible[4:6], some_visible)
    np.testing.assert_array_equal(
        masking.sample_running_cell(whole, GRID, 0.5)[4:6],
        masking.sample_running_cell(part, GRID, 0.5),
    )


def test_every_position_is_hidden_equally_often():
    keys = masking.example_keys(KEY, jnp.arange(4000, dtype=jnp.uint32))
    _, hidden = masking.sample("tube", keys, (1, 6, 6), 0.75)
    share = np.bincount(np.asarray(hidden).ravel(), minlength=36) / 4000
    # 27 of 36 are hidden; the standard error of a share is 0.007.
    np.testing.assert_allclose(share, 0.75, atol=0.035)


@pytest.mark.parametrize(
    ("grid", "mask_ratio"),
    [((4, 6, 6), 0.999), ((4, 6, 6), 1.0), ((4, 6, 6), 0.0), ((4, 1, 1), 0.5)],
)
def test_a_mask_must_leave_something(grid, mask_ratio):
    if 0 < sum(masking.visible_per_frame("tube", grid, mask_ratio)) < np.prod(grid):
        masking.check("tube", grid, mask_ratio)
        return
    with pytest.raises(ValueError, match="at least one visible and one hidden token"):
        masking.check("tube", grid, mask_ratio)


def test_a_ratio_that_hides_all_is_refused():
    with pytest.raises(ValueError, match="leaves 0 of 144 tokens visible"):
        masking.check("tube", GRID, 1.0)
    with pytest.raises(ValueError, match="leaves 144 of 144 tokens visible"):
        masking.check("tube", GRID, 0.01)


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: tube, random"):
        masking.check("tubes", GRID, 0.9)


@pytest.mark.parametrize(
    ("grid", "mask_ratio"), [((4, 5, 6), 0.5), ((4, 6, 6), 0.1), ((4, 6, 6), 1.0)]
)
def test_running_cell_needs_an_even_grid_and_a_share_of_four(grid, mask_ratio):
    with pytest.raises(ValueError, match="running cell"):
        masking.running_cell_maps(grid, mask_ratio)


def by_attention(attention, keys=None):
    keys = masking.example_keys(KEY, jnp.arange(len(attention))) if keys is None else keys
    return np.asarray(masking.sample_by_attention(keys, jnp.asarray(attention), 0.75))


def test_attention_draws_as_many_tokens_of_every_group_in_proportion():
    attention = np.tile(np.arange(1.0, 9.0, dtype=np.float32), (4000, 2, 1))
    visible = by_attention(attention)
    assert visible.shape == (4000, 4) and visible.dtype == np.int32
    assert (np.diff(visible) > 0).all()
    np.testing.assert_array_equal((visible < 8).sum(axis=1), 2)
    # Two draws without replacement with probability p: p_i + sum over j of p_j p_i / (1 - p_j).
    p = np.arange(1.0, 9.0) / 36
    expected = p + np.array(
        [sum(p[j] * p[i] / (1 - p[j]) for j in range(8) if j != i) for i in range(8)]
    )
    share = np.bincount(visible.ravel() % 8, minlength=8) / 8000
    np.testing.assert_allclose(share, expected, atol=0.03)  # standard error 0.006


def test_patches_without_attention_come_last_in_random_order():
    attention = np.zeros((200, 1, 8), np.float32)
    attention[:, :, 5] = 1e-20
    visible = by_attention(attention)
    assert (visible == 5).any(axis=1).all()
    assert len({tuple(row) for row in visible.tolist()}) == 7
    noise = jnp.zeros((1, 1, 8))
    np.testing.assert_array_equal(
        masking.visible_from_noise(jnp.asarray(attention[:1]), noise, 0.875), [[5]]
    )


def test_a_draw_by_attention_depends_on_the_position_only():
    attention = np.random.default_rng(0).random((8, 3, 12), np.float32)
    keys = masking.example_keys(KEY, jnp.arange(8, dtype=jnp.uint32))
    np.testing.assert_array_equal(
        by_attention(attention, keys)[4:6], by_attention(attention[4:6], keys[4:6])
    )
