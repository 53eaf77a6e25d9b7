"""Multi-head attention: over the tokens themselves, or over those of a context."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.init import Init
from internvideo_jax.layers.linear import Rounds
from internvideo_jax.ops.attention import Cache, Dropped, How, attend
from internvideo_jax.ops.quantized import Kernel
from internvideo_jax.ops.rotary import rotate
from internvideo_jax.parallel.mesh import BATCH_AXES, SEQUENCE

RMS_EPS = 1e-6
LOG_10 = math.log(10.0)
MAX_LOG_SCALE = math.log(100.0)
SELF, CROSS = 16, 17  # folded into the keys of a layer, apart from what blocks fold in
HEAD_AXES = ("tensor",)  # mesh axes that heads are split over, as the kernels are (block.py)


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """How tokens attend to each other; every field but `form` is part of a model's identity.

    Attributes:
      heads: of queries.
      kv_heads: of keys and values, each for equally many of the queries'; 0: as many as those.
      qkv_bias: query and value have a bias.
      key_bias: the key has one like them.
      proj_bias: the output projection has one.
      cosine: logits are cosine similarities times a learned temperature per head, clamped at 100
        (VideoMAE V2's `cos_attn`, off in every published model).
      causal: a token sees itself and those before it.
      qk_norm: RMSNorm of queries and keys over all heads together (InternViT, InternVideo2).
      rotary: base of rotary positions (Su et al. 2021) of queries and keys; 0: none.
      dropout: of the weights, in training.
      literal: the heads of a token attend to each other, and tokens not at all: VideoMAE V2 as the
        stage-1 code of InternVideo2 runs it, which hands the kernel tensors with two axes exchanged
        and then reads the result with heads and tokens exchanged as well.
      form: how it is computed, one of `ops.attention.FORMS`.
    """

    heads: int
    kv_heads: int = 0
    qkv_bias: bool = True
    key_bias: bool = False
    proj_bias: bool = True
    cosine: bool = False
    causal: bool = False
    qk_norm: bool = False
    rotary: float = 0.0
    dropout: float = 0.0
    literal: bool = False
    form: str = "auto"

    def __post_init__(self) -> None:
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} heads of keys do not divide {self.heads} of queries")
        if self.literal and (self.kv_heads or self.causal or self.rotary or self.dropout):
            raise ValueError("literal attention has no kv_heads, causal, rotary or dropout")

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    def key_width(self, width: int) -> int:
        """Channels of all keys of a token, and of all its values, for queries of `width`."""
        return head_width(width, self.heads) * self.key_heads


@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig:
    """How tokens attend to a context of `width` channels, with names as in `AttentionConfig`."""

    width: int
    heads: int
    bias: bool = True  # of all four maps
    dropout: float = 0.0
    form: str = "auto"


def head_width(width: int, heads: int, of: str = "") -> int:
    """Channels of a head; ValueError for a width that cannot be dealt out to the heads `of`."""
    if width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} heads{of}")
    return width // heads


def rms_norm(width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, eps: float = RMS_EPS) -> nnx.RMSNorm:
    """x / sqrt(mean(x^2) + eps) times a learned scale, float32 inside, that returns `dtype`."""
    return nnx.RMSNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)


class QKV(nnx.Module, Rounds):
    """Query, key and value projection. The key has no bias (VideoMAE) unless `key_bias` (CLIP).

    The kernel is (3, D_in, D_out): both matmul dimensions are full tiles on a TPU whatever the head
    size, and heads shard with the last dimension. Where heads share keys and values, `q_kernel` is
    (D_in, D_out) and `kv_kernel` (2, D_in, S_out).
    """

    KERNELS = ("kernel", "q_kernel", "kv_kernel")

    def __init__(
        self, width: int, config: AttentionConfig, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        shared = config.key_width(width)
        alike, bias, key_bias = shared == width, config.qkv_bias, config.key_bias
        kernel = init.linear(rngs.params(), width, width + 2 * shared)

        def stacked(part: jax.Array, count: int) -> nnx.Param:
            return nnx.Param(part.reshape(width, count, -1).transpose(1, 0, 2))

        self.kernel = stacked(kernel, 3) if alike else None
        self.q_kernel = None if alike else nnx.Param(kernel[:, :width])
        self.kv_kernel = None if alike else stacked(kernel[:, width:], 2)
        together = key_bias and alike
        self.bias = nnx.Param(jnp.zeros((3, width))) if bias and together else None
        self.q_bias = nnx.Param(jnp.zeros(width)) if bias and not together else None
        self.k_bias = nnx.Param(jnp.zeros(shared)) if bias and key_bias and not alike else None
        self.v_bias = nnx.Param(jnp.zeros(shared)) if bias and not together else None
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, context: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of x (B, N, D) the query, and of it or a context (B, S, D) key and value.

        Returns:
          (B, N, D) and twice (B, S, D), narrower where heads share them.
        """
        read = x if context is None else context
        if self.kernel is None:
            assert self.q_kernel is not None and self.kv_kernel is not None  # noqa: S101
            q = self._product(x, self.q_kernel[...])
            k, v = self._product(read, self.kv_kernel[...])
        elif context is None:
            q, k, v = self._product(x, self.kernel[...])
        else:
            kernel = self._ready(self.kernel[...])
            q = self._product(x, kernel[0])
            k, v = self._product(context, kernel[1:])
        if self.bias is not None:
            bias = self.bias[...].astype(self.dtype)
            return q + bias[0], k + bias[1], v + bias[2]
        if self.k_bias is not None:
            k = k + self.k_bias[...].astype(self.dtype)
        if self.q_bias is not None and self.v_bias is not None:
            q = q + self.q_bias[...].astype(self.dtype)
            v = v + self.v_bias[...].astype(self.dtype)
        return q, k, v

    def _ready(self, kernel: jax.Array | Kernel) -> jax.Array | Kernel:
        """A kernel in the type of the products; one of eight bits has its own."""
        return kernel if isinstance(kernel, Kernel) else kernel.astype(self.dtype)

    def _product(self, x: jax.Array, kernel: jax.Array | Kernel) -> jax.Array:
        """(B, N, C) and (C, O), or S of these -> (B, N, O), or (S, B, N, O)."""
        x, kernel = x.astype(self.dtype), self._ready(kernel)
        if isinstance(kernel, Kernel):
            y = kernel.product(x)
            return y if y.ndim == x.ndim else jnp.moveaxis(y, -2, 0)
        form = "bnc,co->bno" if kernel.ndim == 2 else "bnc,sco->sbno"
        return jnp.einsum(form, x, kernel)


class Attention(nnx.Module):
    """Attention of all tokens over all tokens, or over those of a context; see the config."""

    def __init__(
        self, width: int, config: AttentionConfig, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.config, shared = config, config.key_width(width)
        self.qkv = QKV(width, config, init=init, dtype=dtype, rngs=rngs)
        self.proj = init.layer(width, width, bias=config.proj_bias, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.full((config.heads,), LOG_10)) if config.cosine else None
        self.q_norm = rms_norm(width, dtype=dtype, rngs=rngs) if config.qk_norm else None
        self.k_norm = rms_norm(shared, dtype=dtype, rngs=rngs) if config.qk_norm else None

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        keys: jax.Array | None = None,
        frames: bool = False,
    ) -> jax.Array:
        """x: (B, N, D), and a context (B, S, D) for keys and values -> (B, N, D).

        `mask` and `bias` as in `ops.attention.attend`; `keys` (B,) of dropout, None in evaluation.
        With `frames` the rows are frames of clips, B times T: a mesh that splits the tokens of a
        clip splits these.
        """
        if self.config.literal:
            parts = self._projected(x, context)
            return self.proj(heads_as_tokens(*parts, self.config.heads))
        q, k, v, scale = self._heads(x, context)
        dropped = drop_weights(keys, self.config.dropout, SELF)
        out = attend(q, k, v, mask, bias, **self._how(scale, dropped, frames))
        return self.proj(out.reshape(x.shape))

    def step(
        self,
        x: jax.Array,
        cache: Cache,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """The same for tokens that come behind those of a cache: (B, N, D) -> (B, N, D)."""
        q, k, v, scale = self._heads(x, None, cache.length)
        out, cache = attend(q, k, v, mask, bias, cache=cache, **self._how(scale))
        return self.proj(out.reshape(x.shape)), cache

    def _how(
        self, scale: float | None, dropped: Dropped | None = None, frames: bool = False
    ) -> How:
        return How(
            scale=scale,
            dropped=dropped,
            causal=self.config.causal,
            form=self.config.form,
            batch_axes=(*BATCH_AXES, SEQUENCE) if frames else BATCH_AXES,
            head_axes=HEAD_AXES,
            token_axes=() if frames else (SEQUENCE,),
        )

    def _projected(
        self, x: jax.Array, context: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = self.qkv(x, context)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def _heads(
        self, x: jax.Array, context: jax.Array | None, start: jax.Array | int = 0
    ) -> tuple[jax.Array, jax.Array, jax.Array, float | None]:
        """Queries, keys and values by heads (B, N, K, C), and the factor on the logits.

        The first token is at place `start`.
        """
        config, (q, k, v) = self.config, self._projected(x, context)
        q = split_heads(q, config.heads)
        k, v = (split_heads(part, config.key_heads) for part in (k, v))
        if config.rotary:
            q = rotate(q, start + jnp.arange(q.shape[1]), config.rotary)
            k = rotate(k, start + jnp.arange(k.shape[1]), config.rotary)
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
        heads = self.config.heads
        q, k = split_heads(q, heads), split_heads(k, heads)
        logits = jnp.einsum("bqhc,bnhc->bhqn", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * (width // heads) ** -0.5, axis=-1)
        return weights.mean(axis=1).reshape(batch, tokens)


class CrossAttention(nnx.Module):
    """Attention over the tokens of a context, which may be of another width."""

    def __init__(
        self,
        width: int,
        config: CrossAttentionConfig,
        *,
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        head_width(width, config.heads)
        self.config = config

        def layer(width_in: int) -> nnx.Linear:
            return init.layer(width_in, width, bias=config.bias, dtype=dtype, rngs=rngs)

        self.q, self.k, self.v = layer(width), layer(config.width), layer(config.width)
        self.proj = layer(width)

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """x: (B, N, D), context (B, S, E) and its mask (B, S), False for padding -> (B, N, D).

        `keys` (B,) of dropout, None in evaluation.
        """
        parts = self.q(x), self.k(context), self.v(context)
        q, k, v = (split_heads(part, self.config.heads) for part in parts)
        dropped, form = drop_weights(keys, self.config.dropout, CROSS), self.config.form
        how = How(
            dropped=dropped,
            form=form,
            batch_axes=BATCH_AXES,
            head_axes=HEAD_AXES,
            token_axes=(SEQUENCE,),
        )
        out = attend(q, k, v, mask, **how)
        return self.proj(out.reshape(x.shape))


def drop_weights(keys: jax.Array | None, rate: float, number: int) -> Dropped | None:
    """Dropout with `number` folded into the keys of a layer; None without keys, or for no rate."""
    if keys is None or rate == 0:
        return None
    return Dropped(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), rate)


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
