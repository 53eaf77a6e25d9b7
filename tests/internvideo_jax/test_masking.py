"""Masks: counts, order, independence of batch layout, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import masking

GRID = (4, 6, 6)
KEY = jax.random.key(3)


@pytest.mark.parametrize("kind", ["tube", "random", "progressive", "centering"])
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_visible_and_hidden_partition_the_tokens(kind, ratio):
    keys = masking.example_keys(KEY, jnp.arange(5, dtype=jnp.uint32))
    visible, hidden = map(np.asarray, masking.sample(kind, keys, GRID, ratio))
    assert visible.shape[1] == sum(masking.visible_per_frame(kind, GRID, ratio))
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
    ("grid", "ratio"), [((4, 6, 6), 0.999), ((4, 6, 6), 1.0), ((4, 6, 6), 0.0), ((4, 1, 1), 0.5)]
)
def test_a_mask_must_leave_something(grid, ratio):
    if 0 < sum(masking.visible_per_frame("tube", grid, ratio)) < np.prod(grid):
        masking.check("tube", grid, ratio)
        return
    with pytest.raises(ValueError, match="at least one visible and one hidden token"):
        masking.check("tube", grid, ratio)


def test_a_ratio_that_hides_all_is_refused():
    with pytest.raises(ValueError, match="leaves 0 of 144 tokens visible"):
        masking.check("tube", GRID, 1.0)
    with pytest.raises(ValueError, match="leaves 144 of 144 tokens visible"):
        masking.check("tube", GRID, 0.01)


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: tube, random"):
        masking.check("tubes", GRID, 0.9)


@pytest.mark.parametrize(("grid", "ratio"), [((4, 5, 6), 0.5), ((4, 6, 6), 0.1), ((4, 6, 6), 1.0)])
def test_running_cell_needs_an_even_grid_and_a_share_of_four(grid, ratio):
    with pytest.raises(ValueError, match="running cell"):
        masking.running_cell_maps(grid, ratio)
