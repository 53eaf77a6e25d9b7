"""Attention without a stored matrix of weights, in plain operations, for CPUs.

The same idea as the kernel for TPUs (Dao et al. 2022, FlashAttention): the weights of one head
exist for a block of queries at a time, small enough for the cache of a core, and the backward pass
computes them again. One product more than the plain form, and a seventh of its memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Name of what the backward pass of every form reads, for remat policies.
RESIDUALS = "attention"
# Queries whose weights exist at a time: 256 x 1568 float32 are 1.6 MB. Between 112 and 784 the time
# changed by less than a tenth.
MOST_QUERIES = 256
HIDDEN, TINY = float(jnp.finfo(jnp.float32).min), float(jnp.finfo(jnp.float32).tiny)


def blocked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, *, scale: float
) -> jax.Array:
    """Softmax attention over all keys, or those of a mask, on one device.

    Args:
      q: (B, N, K, C) queries.
      k: (B, S, K, C) keys.
      v: (B, S, K, C) values.
      mask: (B, S) bool, False for keys that are padding.
      scale: factor on the logits.

    Returns:
      (B, N, K, C) in the dtype of `v`. Logits and sums are float32.
    """
    queries, heads = q.shape[1:3]
    q = checkpoint_name(in_blocks(q * scale), RESIDUALS)
    k, v = (checkpoint_name(per_head(x), RESIDUALS) for x in (k, v))
    if mask is not None:
        mask = jnp.repeat(mask, heads, axis=0)
    out: jax.Array = _attend(q, k, v, mask)  # pyright: ignore[reportAssignmentType]
    return as_tokens(out, heads, queries)


def per_head(x: jax.Array) -> jax.Array:
    """(B, N, K, C) -> (B * K, N, C)."""
    batch, tokens, heads, channels = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch * heads, tokens, channels)


def in_blocks(q: jax.Array) -> jax.Array:
    """(B, N, K, C) -> (B * K, blocks, queries of a block, C), the last ones zeros."""
    batch, queries, heads, channels = q.shape
    blocks = -(-queries // MOST_QUERIES)
    q = jnp.pad(per_head(q), [(0, 0), (0, -queries % blocks), (0, 0)])
    return q.reshape(batch * heads, blocks, -1, channels)


def as_tokens(out: jax.Array, heads: int, queries: int) -> jax.Array:
    """The first so many of `in_blocks` as (B, N, K, C)."""
    out = out.reshape(-1, heads, out.shape[1] * out.shape[2], out.shape[-1])
    return out[:, :, :queries].transpose(0, 2, 1, 3)


# Shapes below: q (H, blocks, queries, C), k and v (H, S, C), mask (H, S) or None, with H = B * K.
@jax.custom_vjp
def _attend(q, k, v, mask):
    return forward(q, k, v, mask)[0]


def forward(q, k, v, mask) -> tuple[jax.Array, jax.Array]:
    """Output like `q`, and (H, blocks, queries) logarithm of the sum of exponentials."""

    def head(arrays):
        q, k, v, mask = arrays

        def block(q):
            logits = _logits(q, k, mask)
            highest = logits.max(axis=-1, keepdims=True)
            weights = jnp.exp(logits - highest)
            if mask is not None:
                weights = jnp.where(mask, weights, 0.0)
            total = weights.sum(axis=-1, keepdims=True)
            if mask is not None:  # a query may see no key
                total = jnp.maximum(total, TINY)
            out = _product(weights.astype(v.dtype), v) / total
            return out.astype(v.dtype), (highest + jnp.log(total))[:, 0]

        return jax.lax.map(block, q)

    return jax.lax.map(head, (q, k, v, mask))


def _attend_forward(q, k, v, mask):
    out, log_total = (checkpoint_name(x, RESIDUALS) for x in forward(q, k, v, mask))
    return out, (q, k, v, mask, out, log_total)


def _attend_backward(residuals, gradient):
    return *backward(residuals, gradient), None


def backward(residuals, gradient) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v, of (q, k, v, mask, output, logarithm of the sum).

    Output and logarithm may be of a softmax over more keys than these.
    """

    def head(arrays):
        q, k, v, mask, out, log_total, gradient = arrays
        # What the softmax takes off the gradient of a row of weights.
        shared = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)

        def block(sums, arrays):
            q, log_total, gradient, shared = arrays
            weights = jnp.exp(_logits(q, k, mask) - log_total[:, None])
            if mask is not None:
                weights = jnp.where(mask, weights, 0.0)
            into_logits = weights * (_product(gradient, v.T) - shared[:, None])
            weights, into_logits = weights.astype(v.dtype), into_logits.astype(q.dtype)
            into_k = sums[0] + _product(into_logits.T, q)
            into_v = sums[1] + _product(weights.T, gradient)
            return (into_k, into_v), _product(into_logits, k).astype(q.dtype)

        zeros = jnp.zeros(k.shape, jnp.float32)
        blocks = (q, log_total, gradient, shared)
        (into_k, into_v), into_q = jax.lax.scan(block, (zeros, zeros), blocks)
        return into_q, into_k.astype(k.dtype), into_v.astype(v.dtype)

    return jax.lax.map(head, (*residuals, gradient))


_attend.defvjp(_attend_forward, _attend_backward)


def _logits(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> jax.Array:
    """(queries, S) float32; hidden keys get a value that exp turns into 0."""
    logits = _product(q, k.T)
    return logits if mask is None else jnp.where(mask, logits, HIDDEN)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32)
