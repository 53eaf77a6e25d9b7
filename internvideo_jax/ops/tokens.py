"""Selecting tokens by index."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def take(tokens: jax.Array, index: jax.Array) -> jax.Array:
    """Picks tokens per example: tokens (B, N, D), index (B, V) -> (B, V, D)."""
    return jnp.take_along_axis(tokens, index[..., None], axis=1)


def scatter(tokens: jax.Array, index: jax.Array, values: jax.Array) -> jax.Array:
    """`tokens` (B, N, D) with `values` (B, M, D) written at `index` (B, M)."""
    return jax.vmap(lambda rows, at, new: rows.at[at].set(new))(tokens, index, values)
