"""BertAdam, the optimizer of the CLIP4Clip family (InternVideo1's text-video retrieval)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from internvideo_jax.types import (
    Params,
    Tree,
)


class BertAdamState(NamedTuple):
    """Running means of the gradient and of its square; there is no count of steps."""

    mean: Params
    square: Params


def scale_by_bert_adam(
    b1: float = 0.9, b2: float = 0.98, eps: float = 1e-6, max_norm: float = 1.0
) -> optax.GradientTransformation:
    """Adam without bias correction, after clipping the gradient of each tensor by its own norm.

    A stacked parameter of several layers is one tensor here, the reference has one per layer.

    Args:
      eps: added to the root of the second moment.
      max_norm: largest norm of a tensor's gradient; 0 does not clip.
    """

    def init(params: Tree) -> BertAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return BertAdamState(zeros, zeros)

    def clip(gradient: jax.Array) -> jax.Array:
        # The reference (torch's clip_grad_norm_) has this small number too.
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient.astype(jnp.float32)))) + 1e-6
        return gradient * jnp.minimum(1.0, max_norm / norm).astype(gradient.dtype)

    def update(updates, state, params=None):
        if max_norm > 0:
            updates = jax.tree.map(clip, updates)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, updates)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square)
        return direction, BertAdamState(mean, square)

    return optax.GradientTransformation(init, update)
