"""Multi-head attention: over the tokens themselves, or over those of a context."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.init import Init
from internvideo_jax.ops.attention import Cache, attend
from internvideo_jax.parallel.mesh import BATCH_AXES

RMS_EPS = 1e-6
LOG_10 = math.log(10.0)
MAX_LOG_SCALE = math.log(100.0)
HEAD_AXES = ("tensor",)  # mesh axes that heads are split over, as the kernels are (block.py)


def rms_norm(width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, eps: float = RMS_EPS) -> nnx.RMSNorm:
    """x / sqrt(mean(x^2) + eps) times a learned scale, float32 inside, that returns `dtype`."""
    return nnx.RMSNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)


class QKV(nnx.Module):
    """Query, key and value projection. The key has no bias (VideoMAE) unless `key_bias` (CLIP).

    The kernel is (3, D_in, D_out): both matmul dimensions are full tiles on a TPU whatever the head
    size, and heads shard with the last dimension.
    """

    def __init__(
        self,
        width: int,
        *,
        bias: bool,
        key_bias: bool = False,
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        kernel = init.linear(rngs.params(), width, 3 * width)
        self.kernel = nnx.Param(kernel.reshape(width, 3, width).transpose(1, 0, 2))
        self.bias = nnx.Param(jnp.zeros((3, width))) if bias and key_bias else None
        self.q_bias = nnx.Param(jnp.zeros(width)) if bias and not key_bias else None
        self.v_bias = nnx.Param(jnp.zeros(width)) if bias and not key_bias else None
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, context: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x: (B, N, D) -> three (B, N, D); key and value are (B, S, D) with a context (B, S, D)."""
        kernel = self.kernel[...].astype(self.dtype)
        if context is None:
            q, k, v = jnp.einsum("bnc,sco->sbno", x.astype(self.dtype), kernel)
        else:
            q = jnp.einsum("bnc,co->bno", x.astype(self.dtype), kernel[0])
            k, v = jnp.einsum("bnc,sco->sbno", context.astype(self.dtype), kernel[1:])
        if self.bias is not None:
            bias = self.bias[...].astype(self.dtype)
            q, k, v = q + bias[0], k + bias[1], v + bias[2]
        if self.q_bias is not None and self.v_bias is not None:
            q = q + self.q_bias[...].astype(self.dtype)
            v = v + self.v_bias[...].astype(self.dtype)
        return q, k, v


class Attention(nnx.Module):
    """Attention of all tokens over all tokens, or over those of a context.

    With `cosine` the logits are cosine similarities times a learned temperature per head, clamped
    at 100 (VideoMAE V2's `cos_attn`, off in every published model). With `causal` a token sees
    itself and those before it. `form` is how it is computed, one of `ops.attention.FORMS`.
    With `qk_norm` queries and keys are RMS-normalised over all heads together (InternViT,
    InternVideo2). With `literal` the heads of a token attend to each other, and tokens not at all:
    VideoMAE V2 as the stage-1 code of InternVideo2 runs it, which hands the kernel tensors with two
    axes exchanged and then reads the result with heads and tokens exchanged as well.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        key_bias: bool = False,
        cosine: bool = False,
        causal: bool = False,
        qk_norm: bool = False,
        literal: bool = False,
        form: str = "auto",
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.form = form
        self.causal = causal
        self.literal = literal
        self.qkv = QKV(width, bias=qkv_bias, key_bias=key_bias, init=init, dtype=dtype, rngs=rngs)
        self.proj = init.layer(width, width, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.full((heads,), LOG_10)) if cosine else None
        self.q_norm = rms_norm(width, dtype=dtype, rngs=rngs) if qk_norm else None
        self.k_norm = rms_norm(width, dtype=dtype, rngs=rngs) if qk_norm else None

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """x: (B, N, D), and a context (B, S, D) for keys and values -> (B, N, D).

        `mask` and `bias` as in `ops.attention.attend`.
        """
        if self.literal:
            return self.proj(heads_as_tokens(*self._projected(x, context), self.heads))
        q, k, v, scale = self._heads(x, context)
        out = attend(q, k, v, mask, bias, scale=scale, **self._options())
        return self.proj(out.reshape(x.shape))

    def step(
        self,
        x: jax.Array,
        cache: Cache,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """The same for tokens that come behind those of a cache: (B, N, D) -> (B, N, D)."""
        q, k, v, scale = self._heads(x, None)
        out, cache = attend(q, k, v, mask, bias, cache=cache, scale=scale, **self._options())
        return self.proj(out.reshape(x.shape)), cache

    def _options(self) -> dict[str, Any]:
        return {
            "causal": self.causal,
            "form": self.form,
            "batch_axes": BATCH_AXES,
            "head_axes": HEAD_AXES,
        }

    def _projected(
        self, x: jax.Array, context: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = self.qkv(x, context)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def _heads(
        self, x: jax.Array, context: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, float | None]:
        """Queries, keys and values by heads (B, N, K, C), and the factor on the logits."""
        q, k, v = (split_heads(part, self.heads) for part in self._projected(x, context))
        if self.scale is None:
            return q, k, v, None
        temperature = jnp.exp(jnp.minimum(self.scale[...], MAX_LOG_SCALE))
        q = (unit(q) * temperature[:, None]).astype(v.dtype)
        return q, unit(k).astype(v.dtype), v, 1.0

    def first_row(self, x: jax.Array) -> jax.Array:
        """How much the first token attends to every token: x (B, N, D) -> (B, N) float32.

        Softmax weights, mean over heads: where the class token of an image transformer looks.
        """
        batch, tokens, width = x.shape
        q, k, _ = self._projected(x[:, :1], x)
        q, k = split_heads(q, self.heads), split_heads(k, self.heads)
        logits = jnp.einsum("bqhc,bnhc->bhqn", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * (width // self.heads) ** -0.5, axis=-1)
        return weights.mean(axis=1).reshape(batch, tokens)


class CrossAttention(nnx.Module):
    """Attention over the tokens of a context, which may be of another width."""

    def __init__(
        self,
        width: int,
        heads: int,
        context_width: int,
        *,
        form: str = "auto",
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads, self.form = heads, form
        self.q = init.layer(width, width, dtype=dtype, rngs=rngs)
        self.k = init.layer(context_width, width, dtype=dtype, rngs=rngs)
        self.v = init.layer(context_width, width, dtype=dtype, rngs=rngs)
        self.proj = init.layer(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """x: (B, N, D), context (B, S, E) and its mask (B, S), False for padding -> (B, N, D)."""
        parts = self.q(x), self.k(context), self.v(context)
        q, k, v = (split_heads(part, self.heads) for part in parts)
        out = attend(q, k, v, mask, form=self.form, batch_axes=BATCH_AXES, head_axes=HEAD_AXES)
        return self.proj(out.reshape(x.shape))


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, N, K * C) -> (B, N, K, C)."""
    return x.reshape(*x.shape[:2], heads, -1)


def heads_as_tokens(q: jax.Array, k: jax.Array, v: jax.Array, heads: int) -> jax.Array:
    """Attention among the heads inside each token, scrambled as in the released code.

    Args:
      q, k, v: (B, N, D).

    Returns:
      (B, N, D): results (B, heads, N, C) read as if they were (B, N, heads, C).
    """
    batch, tokens, width = v.shape
    shape = batch * tokens, heads, 1, width // heads
    out = attend(q.reshape(shape), k.reshape(shape), v.reshape(shape), form="xla")
    out = out.reshape(batch, tokens, heads, width // heads)
    return out.transpose(0, 2, 1, 3).reshape(batch, tokens, width)


def unit(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) over the last axis, in float32, differentiable at zero."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
