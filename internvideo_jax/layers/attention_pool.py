"""Attention pooling: one vector of all tokens, asked for by their mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import head_width
from internvideo_jax.layers.block import layer_norm
from internvideo_jax.layers.init import Init

NORM_EPS = 1e-5

# The heads go over `tensor`, the other matmul dimension over `fsdp`.
POOL_SHARDING = (
    (r"pool/[qkv]/kernel", ("fsdp", "tensor")),
    (r"pool/[qkv]/bias", ("tensor",)),
    (r"pool/proj/kernel", ("tensor", "fsdp")),
)


class AttentionPool(nnx.Module):
    """Cross-attention of the mean token to all tokens: no residual, no MLP, no positions.

    InternVL's and InternVideo2's last module (Wang et al. 2024). There is one query, so keys and
    values are never made: with k = W_k x the logits q . k are (W_k^T q) . x, and the weighted mean
    of W_v x is W_v times the weighted mean of x. That is the same function with two products per
    token and head instead of two D x D matrices per token.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        embedding: int,
        *,
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        head_width(width, heads, " of the pool")
        self.heads = heads
        self.dtype = dtype
        self.norm_q = layer_norm(width, dtype=dtype, rngs=rngs, eps=NORM_EPS)
        self.norm_k = layer_norm(width, dtype=dtype, rngs=rngs, eps=NORM_EPS)
        self.norm_v = layer_norm(width, dtype=dtype, rngs=rngs, eps=NORM_EPS)
        self.q = init.layer(width, width, dtype=dtype, rngs=rngs)
        # No token is multiplied by these two.
        self.k = init.layer(width, width, dtype=dtype, rngs=rngs, rounds=False)
        self.v = init.layer(width, width, dtype=dtype, rngs=rngs, rounds=False)
        self.proj = init.layer(width, embedding, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, N, D) -> (B, E)."""
        return self.with_attention(x)[0]

    def with_attention(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The pooled vectors (B, E), and what every token weighs in them.

        Returns:
          (B, E) in the dtype of the pool, and (B, N) float32: softmax weights, mean over heads; a
          row sums to one.
        """
        batch, _, width = x.shape
        split = width, self.heads, width // self.heads
        q = self.q(self.norm_q(x.mean(axis=1))) * (width // self.heads) ** -0.5
        q = q.reshape(batch, *split[1:])
        # The key's bias adds the same to all logits of a head: the softmax does not see it. It is
        # in the files, and nothing moves it.
        wanted = jnp.einsum("bkc,dkc->bkd", q, self.k.kernel[...].astype(self.dtype).reshape(split))
        logits = jnp.einsum(
            "bkd,bnd->bkn", wanted, self.norm_k(x), preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits, axis=-1)
        mean = jnp.einsum("bkn,bnd->bkd", weights.astype(self.dtype), self.norm_v(x))
        pooled = jnp.einsum(
            "bkd,dkc->bkc", mean, self.v.kernel[...].astype(self.dtype).reshape(split)
        )
        bias = self.v.bias
        assert bias is not None  # noqa: S101
        pooled = pooled.reshape(batch, width) + bias[...].astype(self.dtype)
        return self.proj(pooled), weights.mean(axis=1)


def pool_flops(tokens: int, width: int, heads: int, embedding: int) -> float:
    """Multiply-adds of an AttentionPool on the `tokens` tokens of one example, times two."""
    return float(6 * width**2 + 2 * width * embedding + 4 * tokens * heads * width)
