"""The transformer block, of attention, cross-attention and MLP, and how it is sharded."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import (
    Attention,
    AttentionConfig,
    CrossAttention,
    CrossAttentionConfig,
    rms_norm,
)
from internvideo_jax.layers.drop_path import drop_path, head_dropout
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.mlp import MLP, MLPConfig
from internvideo_jax.ops.attention import Cache

NORM_EPS = 1e-6  # every norm of the VideoMAE family; CLIP has 1e-5

# Path pattern -> mesh axes, for the parameters of stacked blocks (first axis: layers). Heads and
# hidden units go over `tensor`, the other matmul dimension over `fsdp`.
_QKV_BIAS = (r"blocks/attn/qkv/([qkv]_)?bias", (..., "tensor"))
_MLP_BIAS = (r"blocks/mlp/fc1/bias", (None, "tensor"))
BLOCK_SHARDING = (
    (r"blocks/attn/qkv/kernel", (None, None, "fsdp", "tensor")),
    _QKV_BIAS,
    (r"blocks/attn/proj/kernel", (None, "tensor", "fsdp")),
    (r"blocks/mlp/fc1/kernel", (None, "fsdp", "tensor")),
    _MLP_BIAS,
    (r"blocks/mlp/fc2/kernel", (None, "tensor", "fsdp")),
)
_GROUPED_SHARDING = (
    (r"blocks/attn/qkv/q_kernel", (None, "fsdp", "tensor")),
    (r"blocks/attn/qkv/kv_kernel", (None, None, "fsdp", "tensor")),
)
_GATE = (r"blocks/mlp/gate/kernel", (None, "fsdp", "tensor"))
_CROSS_SHARDING = (
    (r"blocks/cross/[qkv]/kernel", (None, "fsdp", "tensor")),
    (r"blocks/cross/proj/kernel", (None, "tensor", "fsdp")),
)
_CROSS_BIAS = (r"blocks/cross/[qkv]/bias", (None, "tensor"))
DROPOUT = 8  # dropout of branch i folds 8 + i into the keys of a layer, drop path i
NORMS = ("layer", "rms")
ORDERS = ("pre", "post")


def layer_norm(
    width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, eps: float = NORM_EPS
) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics that returns `dtype`."""
    return nnx.LayerNorm(width, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """The norms of a block: their kind, and where they stand."""

    kind: str = "layer"  # layer | rms
    order: str = "pre"  # before each part | post: after its sum with the input, as in BERT
    eps: float = NORM_EPS

    def __post_init__(self) -> None:
        if self.kind not in NORMS:
            raise ValueError(f"unknown norm {self.kind!r}; known: {', '.join(NORMS)}")
        if self.order not in ORDERS:
            raise ValueError(f"unknown order of norms {self.order!r}; known: {', '.join(ORDERS)}")

    def make(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
        """One of them."""
        norm = layer_norm if self.kind == "layer" else rms_norm
        return norm(width, dtype=dtype, rngs=rngs, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One transformer block, put together from its parts.

    A layer of BERT with fused tokens of an encoder, in InternVideo2's stage 2, has `key_bias`,
    `cross`, and norms of the order `post`; one of a language model as Mistral or InternLM `causal`
    attention with `kv_heads` and `rotary` positions, a gated MLP, RMS norms and no bias.
    """

    width: int
    attention: AttentionConfig
    mlp: MLPConfig
    cross: CrossAttentionConfig | None = None  # between the two, over a context
    norm: NormConfig = NormConfig()
    # Initial LayerScale of attention and MLP; 0 = none.
    layer_scale: float = 0.0
    dropout: float = 0.0  # of the values that each part adds, as in BERT

    @property
    def draws(self) -> bool:
        """Whether there is dropout in it."""
        parts = (self, self.attention, self.cross)
        return any(part is not None and part.dropout > 0 for part in parts)


def block_sharding(config: BlockConfig) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The rules for the parameters of such blocks; BLOCK_SHARDING are those of most."""
    attention = config.attention
    rules = [rule for rule in BLOCK_SHARDING if attention.qkv_bias or rule is not _QKV_BIAS]
    if attention.key_heads != attention.heads:
        rules = [*_GROUPED_SHARDING, *rules[1:]]
    if not config.mlp.bias:
        rules.remove(_MLP_BIAS)
    if config.mlp.gated:
        rules.append(_GATE)
    if config.cross is not None:
        rules += [*_CROSS_SHARDING, *([_CROSS_BIAS] if config.cross.bias else [])]
    return tuple(rules)


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
        width, cross, scale = config.width, config.cross, config.layer_scale
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.order, self.dropout, self.draws = config.norm.order, config.dropout, config.draws
        self.norm1 = config.norm.make(width, **options)
        self.attn = Attention(width, config.attention, init=init, **options)
        self.norm_cross = config.norm.make(width, **options) if cross else None
        self.cross = CrossAttention(width, cross, init=init, **options) if cross else None
        self.norm2 = config.norm.make(width, **options)
        self.mlp = MLP(width, config.mlp, init=init, **options)
        self.gamma1 = nnx.Param(jnp.full((width,), scale)) if scale > 0 else None
        self.gamma2 = nnx.Param(jnp.full((width,), scale)) if scale > 0 else None

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
            return self.attn(y, mask=beside.mask, bias=beside.bias, keys=keys)

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
                return cross(y, context, beside.context_mask, keys)

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
        if keys is None:
            return y
        y = head_dropout(y, keys, self.dropout, DROPOUT + which)
        return drop_path(y, keys, rate, which)
