"""The student of Unmasked Teacher: what it returns, which settings it refuses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.families.umt.model import UMTStudentConfig
from internvideo_jax.parallel.rules import idle_rules

SMALL = UMTStudentConfig.of_size("base", drop_path=0.5, clip_width=20).smallest()


def test_features_of_the_aligned_blocks_have_length_one():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    model = config.model()
    params = model.init(jax.random.key(0))
    video = np.random.default_rng(0).integers(
        0, 256, (2, config.frames, config.resolution, config.resolution, 3), np.uint8
    )
    visible = jnp.array([[0, 3, 5], [1, 2, 31]])
    apply = jax.jit(model.apply)
    found = apply(params, video, visible)["clip_middle"]
    assert found.shape == (2, 2, 3, 20) and found.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=-1), 1, rtol=1e-5)
    keys = jax.random.split(jax.random.key(1), 2)
    assert not np.allclose(apply(params, video, visible, keys)["clip_middle"], found)


def test_the_smallest_one_keeps_the_number_of_aligned_blocks():
    assert SMALL.clip_layers == (0, 1)
    one = UMTStudentConfig.of_size("base", clip_layers=(7,)).smallest()
    assert one.clip_layers == (1,)


def test_no_sharding_rule_is_idle():
    assert idle_rules(SMALL.model().shapes(), SMALL.sharding_rules) == []


@pytest.mark.parametrize("layers", [(3, 2), (2, 2), (11, 12), (-1, 3)])
def test_blocks_that_are_not_there_are_refused(layers):
    with pytest.raises(
        ValueError, match="expected ascending numbers of blocks, one at least, 0 to 11"
    ):
        UMTStudentConfig.of_size("base", clip_layers=layers)
