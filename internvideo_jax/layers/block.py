"""The pre-norm transformer block, and how its parameters are sharded."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import Attention, rms_norm
from internvideo_jax.layers.drop_path import drop_path
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.mlp import MLP

NORM_EPS = 1e-6  # every norm of the VideoMAE family; CLIP has 1e-5

# Path pattern -> mesh axes, for the parameters of stacked blocks (first axis: layers). Heads and
# hidden units go over `tensor`, the other matmul dimension over `fsdp`.
_QKV_BIAS = (r"blocks/attn/qkv/([qv]_)?bias", (..., "tensor"))
BLOCK_SHARDING = (
    (r"blocks/attn/qkv/kernel", (None, None, "fsdp", "tensor")),
    _QKV_BIAS,
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
    activation: str = "gelu"  # gelu (exact) | gelu_tanh | quick_gelu
    norm_eps: float = NORM_EPS
    causal: bool = False  # a token attends to itself and those before it
    norm: str = "layer"  # layer | rms
    qk_norm: bool = False  # RMSNorm of queries and keys over all heads together
    literal: bool = False  # heads attend to each other instead of tokens, see layers/attention.py
    attention: str = "auto"  # form of the computation, see ops/attention.py

    def make_norm(self, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
        """A norm of the block; ValueError for a kind that does not exist."""
        if self.norm == "layer":
            return layer_norm(self.width, dtype=dtype, rngs=rngs, eps=self.norm_eps)
        if self.norm == "rms":
            return rms_norm(self.width, dtype=dtype, rngs=rngs, eps=self.norm_eps)
        raise ValueError(f"unknown norm {self.norm!r}; known: layer, rms")


def block_sharding(config: BlockConfig) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Those of BLOCK_SHARDING that the parameters of such blocks have."""
    return tuple(rule for rule in BLOCK_SHARDING if config.qkv_bias or rule is not _QKV_BIAS)


class Block(nnx.Module):
    """x + DropPath(gamma1 * Attention(norm(x))), then the same with the MLP."""

    def __init__(self, config: BlockConfig, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.width
        self.norm1 = config.make_norm(dtype=dtype, rngs=rngs)
        self.attn = Attention(
            width,
            config.heads,
            qkv_bias=config.qkv_bias,
            key_bias=config.key_bias,
            cosine=config.cosine,
            causal=config.causal,
            qk_norm=config.qk_norm,
            literal=config.literal,
            form=config.attention,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = config.make_norm(dtype=dtype, rngs=rngs)
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
        if gamma is not None:  # in float32: gamma may be 1e-5, and learns from there
            y = (y.astype(jnp.float32) * gamma[...]).astype(y.dtype)
        return y if keys is None else drop_path(y, keys, rate, which)
