"""The transformer block, of attention, cross-attention and MLP, and how it is sharded."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import Attention, CrossAttention, rms_norm
from internvideo_jax.layers.drop_path import drop_path
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.mlp import MLP
from internvideo_jax.ops.attention import Cache

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
CROSS_SHARDING = (
    (r"blocks/cross/[qkv]/kernel", (None, "fsdp", "tensor")),
    (r"blocks/cross/[qkv]/bias", (None, "tensor")),
    (r"blocks/cross/proj/kernel", (None, "tensor", "fsdp")),
)
ORDERS = ("pre", "post")


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
    order: str = "pre"  # norm before each part | post: after its sum with the input, as in BERT
    context: int = 0  # width of a context that cross-attention reads between the two; 0: none

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"unknown order of norms {self.order!r}; known: {', '.join(ORDERS)}")

    def make_norm(self, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
        """A norm of the block; ValueError for a kind that does not exist."""
        if self.norm == "layer":
            return layer_norm(self.width, dtype=dtype, rngs=rngs, eps=self.norm_eps)
        if self.norm == "rms":
            return rms_norm(self.width, dtype=dtype, rngs=rngs, eps=self.norm_eps)
        raise ValueError(f"unknown norm {self.norm!r}; known: layer, rms")


def block_sharding(config: BlockConfig) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Those of BLOCK_SHARDING that the parameters of such blocks have."""
    rules = tuple(rule for rule in BLOCK_SHARDING if config.qkv_bias or rule is not _QKV_BIAS)
    return (*rules, *CROSS_SHARDING) if config.context else rules


class Beside(NamedTuple):
    """What the blocks of a stack see beside their own tokens; None is what is not there."""

    mask: jax.Array | None = None  # (B, N) bool, False for tokens that are padding
    bias: jax.Array | None = None  # on the logits, spreads to (B, K, N, N)
    context: jax.Array | None = None  # (B, S, E) tokens for cross-attention
    context_mask: jax.Array | None = None  # (B, S) bool


NOTHING = Beside()


class Block(nnx.Module):
    """Attention, cross-attention where there is a context, and MLP, each with norm and residual.

    One part is x + DropPath(gamma * part(norm(x))), or with the norms behind
    norm(x + DropPath(gamma * part(x))).
    """

    def __init__(self, config: BlockConfig, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.width
        self.order = config.order
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
        crossed = config.context > 0
        self.norm_cross = config.make_norm(dtype=dtype, rngs=rngs) if crossed else None
        self.cross = (
            CrossAttention(
                width,
                config.heads,
                config.context,
                form=config.attention,
                init=init,
                dtype=dtype,
                rngs=rngs,
            )
            if crossed
            else None
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
        self,
        x: jax.Array,
        keys: jax.Array | None = None,
        rate: jax.Array | float = 0.0,
        beside: Beside = NOTHING,
    ) -> jax.Array:
        """One layer.

        Args:
          x: (B, N, D).
          keys: (B,) keys for drop path, None for none.
          rate: probability that a residual branch of an example is dropped.
          beside: masks, bias and context.
        """

        def attend(y: jax.Array) -> jax.Array:
            return self.attn(y, mask=beside.mask, bias=beside.bias)

        x = self._part(x, self.norm1, attend, self.gamma1, keys, rate, 0)
        return self._rest(x, keys, rate, beside)

    def step(self, x: jax.Array, cache: Cache, beside: Beside = NOTHING) -> tuple[jax.Array, Cache]:
        """The layer for tokens behind those whose keys are cached, without drop path.

        `beside.mask` and `beside.bias` are of the positions of the cache.
        """
        y = self._before(x, self.norm1)
        y, cache = self.attn.step(y, cache, beside.mask, beside.bias)
        x = self._after(x, self._branch(y, self.gamma1, None, 0.0, 0), self.norm1)
        return self._rest(x, None, 0.0, beside), cache

    def _rest(self, x, keys, rate, beside: Beside) -> jax.Array:
        """Cross-attention and MLP."""
        cross = self.cross
        if cross is not None:
            context = beside.context
            if context is None:
                raise ValueError("the block has cross-attention and was given no context")

            def read(y: jax.Array) -> jax.Array:
                return cross(y, context, beside.context_mask)

            x = self._part(x, self.norm_cross, read, None, keys, rate, 2)
        return self._part(x, self.norm2, self.mlp, self.gamma2, keys, rate, 1)

    def _part(self, x, norm, part, gamma, keys, rate, which) -> jax.Array:
        y = self._branch(part(self._before(x, norm)), gamma, keys, rate, which)
        return self._after(x, y, norm)

    def _before(self, x, norm) -> jax.Array:
        return norm(x) if self.order == "pre" else x

    def _after(self, x, y, norm) -> jax.Array:
        return x + y if self.order == "pre" else norm(x + y)

    def _branch(self, y, gamma, keys, rate, which):
        if gamma is not None:  # in float32: gamma may be 1e-5, and learns from there
            y = (y.astype(jnp.float32) * gamma[...]).astype(y.dtype)
        return y if keys is None else drop_path(y, keys, rate, which)
