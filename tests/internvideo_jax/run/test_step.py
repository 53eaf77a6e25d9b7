"""The train step as a program: one for a run, whatever a model's parameters start as."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step
from tests.recipes import shipped

# One of each family; the first has a LayerScale made of a Python number, a weakly typed array.
RECIPES = ("internvideo2-distill-small", "videomae-pretrain-v2-giant", "umt-pretrain-base")


def typed(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


@pytest.mark.parametrize("name", RECIPES)
def test_the_state_of_the_second_step_has_the_types_of_the_first(name):
    """Else the step would be compiled twice in every run, which takes minutes for large models."""
    config = shipped.config(name, "smoke")
    run = build(config, records=100)
    clip = config.data.clip
    batch = {
        "video": np.zeros((4, clip.frames, clip.resolution, clip.resolution, 3), np.uint8),
        "position": np.arange(4, dtype=np.uint32),
        "index": np.arange(4, dtype=np.int32),
        "label": np.zeros(4, np.int32),
    }
    first = jax.eval_shape(lambda: init_state(run))
    step = make_train_step(run)
    with jax.set_mesh(run.mesh):
        second, _ = jax.eval_shape(step.jitted, first, batch, step.frozen)
    assert typed(first) == typed(second)
