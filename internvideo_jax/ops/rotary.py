"""Rotary positions (Su et al. 2021): pairs of channels turned by an angle that grows by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, places: jax.Array, base: float) -> jax.Array:
    """Queries or keys turned by their places; the pair of channel c is channel c + C / 2.

    Args:
      x: (B, N, K, C), C even.
      places: (N,) numbers of the tokens.
      base: the angle of pair c grows by base ** (-2 c / C) from token to token.

    Returns:
      The same shape and dtype, computed in float32.
    """
    half = x.shape[-1] // 2
    slower = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = places.astype(jnp.float32)[:, None, None] * slower
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
    return turned.astype(x.dtype)
