"""Loss pieces; all in float32 and per example, the mean is taken by the train step."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-sum(target * log_softmax(logits)): logits and target (B, K) -> (B,)."""
    return -(target * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1)


def smooth_labels(label: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """One-hot targets (B, K) with `smoothing / K` moved to every class."""
    off = smoothing / classes
    return jax.nn.one_hot(label, classes) * (1.0 - smoothing) + off
