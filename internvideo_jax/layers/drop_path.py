"""Stochastic depth and dropout with one key per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def drop_path(
    y: jax.Array, keys: jax.Array, rate: jax.Array | float, which: int, shape: tuple[int, ...] = ()
) -> jax.Array:
    """Drops a residual branch per example and rescales the rest by 1 / (1 - rate).

    Args:
      y: (B, ..., D) branch output.
      keys: (B,) keys.
      rate: drop probability.
      which: number of the branch within its layer, so that two branches draw apart.
      shape: of the draws of one example, for branches that drop in parts; it broadcasts to the axes
        of `y` that follow the first.
    """
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, which), shape))(keys)
    factor = jnp.where(drawn < keep, 1.0 / keep, 0.0)
    return y * factor.reshape(*factor.shape, *[1] * (y.ndim - factor.ndim)).astype(y.dtype)


def dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Elementwise dropout of (B, ...) features, drawn per example."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def head_dropout(x: jax.Array, keys: jax.Array | None, rate: float, number: int) -> jax.Array:
    """Dropout of what a head reads, (B, ...); nothing without keys, as in evaluation.

    Args:
      number: what the head folds into the keys, another one than any layer's.
    """
    if keys is None or rate == 0:
        return x
    return dropout(x, jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), rate)
