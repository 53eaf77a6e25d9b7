"""The feed-forward half of a block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.models.layers.init import Init


class MLP(nnx.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, width: int, hidden: int, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.fc1 = init.layer(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = init.layer(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, N, D) -> (B, N, D)."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
