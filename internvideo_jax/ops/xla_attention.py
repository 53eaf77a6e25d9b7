"""Attention as plain products that XLA arranges."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from internvideo_jax.ops.blocked_attention import RESIDUALS


class Dropped(NamedTuple):
    """Dropout of the weights of attention, drawn per example."""

    keys: jax.Array  # (B,)
    rate: float


def xla_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    causal: bool = False,
    seen: jax.Array | None = None,
    bias: jax.Array | None = None,
    dropped: Dropped | None = None,
) -> jax.Array:
    """Softmax attention; shapes as in `attention.attend`, `seen` bool that spreads to (B, K, N, S).

    The values are summed with the unnormalised weights and divided afterwards: N x C instead of
    N x N divisions, and one pass less over the logits. On CPU this is what makes the step faster
    than the usual softmax-then-product; the result differs by rounding only.
    """
    q, k, v = (checkpoint_name(x, RESIDUALS) for x in (q, k, v))
    logits = jnp.einsum("bnkc,bskc->bkns", q * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if causal:
        logits = jnp.where(jnp.tri(*logits.shape[2:], dtype=bool), logits, -jnp.inf)
    if seen is not None:
        logits = jnp.where(seen, logits, -jnp.inf)
    # The maximum only guards against overflow; it cancels, so no gradient needs to flow into it.
    highest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    if seen is not None or bias is not None:  # a query may see nothing
        highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    weights = jnp.exp(logits - highest)
    total = jnp.einsum("bkns->bnk", weights)
    if seen is not None or bias is not None:
        total = jnp.where(total > 0, total, 1.0)
    if dropped is not None:
        drawn = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - dropped.rate, weights.shape[1:]))
        weights = jnp.where(drawn(dropped.keys), weights / (1 - dropped.rate), 0.0)
    summed = jnp.einsum(
        "bkns,bskc->bnkc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return checkpoint_name((summed / total[..., None]).astype(v.dtype), RESIDUALS)
