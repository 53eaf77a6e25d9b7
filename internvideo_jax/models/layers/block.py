"""The pre-norm transformer block, and how its parameters are sharded."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.models.layers.attention import Attention
from internvideo_jax.models.layers.drop_path import drop_path
from internvideo_jax.models.layers.init import Init
from internvideo_jax.models.layers.mlp import MLP

NORM_EPS = 1e-6  # every norm of the VideoMAE family; CLIP has 1e-5

# Path pattern -> mesh axes, for the parameters of stacked blocks (first axis: layers). Heads and
# hidden units go over `tensor`, the other matmul dimension over `fsdp`.
BLOCK_SHARDING = (
    (r"blocks/attn/qkv/kernel", (None, None, "fsdp", "tensor")),
    (r"blocks/attn/qkv/([qv]_)?bias", (..., "tensor")),
    (r"blocks/attn/proj/kernel", (None, "tensor", "fsdp")),
    (r"blocks/mlp/fc1/kernel", (None, "fsdp", "tensor")),
    (r"blocks/mlp/fc1/bias", (None, "tensor")),
    (r"blocks/mlp/fc2/kernel", (None, "tensor", "fsdp")),
)


def layer_norm(
    width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, eps: float = NORM_EPS
) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics that returns `dtype`."""
    return nnx.LayerNorm(width, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One transformer block; every field but `attention` is part of a model's identity."""

    width: int
    heads: int
    hidden: int  # units of the MLP
    qkv_bias: bool = True
    layer_scale: float = 0.0  # initial value of LayerScale; 0 = no LayerScale
    cosine: bool = False
    key_bias: bool = False  # the key has a bias like query and value
    activation: str = "gelu"  # gelu | quick_gelu
    norm_eps: float = NORM_EPS
    causal: bool = False  # a token attends to itself and those before it
    attention: str = "auto"  # form of the computation, see ops/attention.py


class Block(nnx.Module):
    """x + DropPath(gamma1 * Attention(LN(x))), then the same with the MLP."""

    def __init__(self, config: BlockConfig, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.width
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs, eps=config.norm_eps)
        self.attn = Attention(
            width,
            config.heads,
            qkv_bias=config.qkv_bias,
            key_bias=config.key_bias,
            cosine=config.cosine,
            causal=config.causal,
            form=config.attention,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs, eps=config.norm_eps)
        self.mlp = MLP(
            width,
            config.hidden,
            activation=config.activation,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        scaled = config.layer_scale > 0
        self.gamma1 = nnx.Param(jnp.full((width,), config.layer_scale)) if scaled else None
        self.gamma2 = nnx.Param(jnp.full((width,), config.layer_scale)) if scaled else None

    def __call__(
        self, x: jax.Array, keys: jax.Array | None = None, rate: jax.Array | float = 0.0
    ) -> jax.Array:
        """One layer.

        Args:
          x: (B, N, D).
          keys: (B,) keys for drop path, None for none.
          rate: probability that a residual branch of an example is dropped.
        """
        x = x + self._branch(self.attn(self.norm1(x)), self.gamma1, keys, rate, 0)
        return x + self._branch(self.mlp(self.norm2(x)), self.gamma2, keys, rate, 1)

    def _branch(self, y, gamma, keys, rate, which):
        if gamma is not None:
            y = y * gamma[...].astype(y.dtype)
        return y if keys is None else drop_path(y, keys, rate, which)
