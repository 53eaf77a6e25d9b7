"""The feed-forward half of a block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.drop_path import dropout
from internvideo_jax.layers.init import Init
from internvideo_jax.ops.activations import gelu, gelu_tanh, quick_gelu

ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


class MLP(nnx.Module):
    """Linear, activation, linear."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "gelu",
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.fc1 = init.layer(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = init.layer(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, keys: jax.Array | None = None, rate: float = 0.0) -> jax.Array:
        """x: (B, N, D) -> (B, N, D); with keys (B,) hidden units are dropped with `rate`."""
        hidden = ACTIVATIONS[self.activation](self.fc1(x))
        if keys is not None and rate > 0:
            hidden = dropout(hidden, keys, rate)
        return self.fc2(hidden)
