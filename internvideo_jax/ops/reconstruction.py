"""Pixel reconstruction: targets, loss, and the way back to images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from internvideo_jax.ops.pixels import patchify, to_unit
from internvideo_jax.ops.tokens import take
from internvideo_jax.types import Mean


def normalized_target(tokens: jax.Array) -> jax.Array:
    """Per tubelet and colour: zero mean, unit variance (VideoMAE, section 3.2 of the paper).

    The variance is the unbiased one and 1e-6 is added to the standard deviation, not to the
    variance, as in the released code.

    Args:
      tokens: (B, M, D) pixels in 0..1, channel fastest.

    Returns:
      (B, M, D) float32.
    """
    values = rearrange(tokens, "b m (k c) -> b m k c", c=3)
    mean, std = _moments(values)
    return rearrange((values - mean) / (std + 1e-6), "b m k c -> b m (k c)")


def restore_pixels(predicted: jax.Array, tokens: jax.Array) -> jax.Array:
    """Undoes `normalized_target` for a prediction, with the statistics of the true `tokens`."""
    mean, std = _moments(rearrange(tokens, "b m (k c) -> b m k c", c=3))
    values = rearrange(predicted, "b m (k c) -> b m k c", c=3)
    return rearrange(values * (std + 1e-6) + mean, "b m k c -> b m (k c)")


def _moments(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and unbiased standard deviation over the pixels of a token, (B, M, 1, 3) each."""
    mean = values.mean(axis=2, keepdims=True)
    count = values.shape[2]
    variance = jnp.square(values - mean).sum(axis=2, keepdims=True) / (count - 1)
    return mean, jnp.sqrt(variance)


def pixel_targets(
    video: jax.Array, decoded: jax.Array, *, tubelet: int, patch: int, normalized: bool
) -> jax.Array:
    """What the decoder should predict: (B, M, D) float32 for (B, M) token indices."""
    tokens = to_unit(take(patchify(video, tubelet, patch), decoded))
    return jax.lax.stop_gradient(normalized_target(tokens) if normalized else tokens)


def pixel_loss(
    predicted: jax.Array,
    video: jax.Array,
    visible: jax.Array,
    decoded: jax.Array,
    *,
    tubelet: int,
    patch: int,
    normalized: bool,
) -> Mean:
    """Squared error per decoded token, weighted 1 where the token was hidden from the encoder.

    The mean is over the hidden decoded tokens of the whole batch. The reference of V2 divides by
    the count of its own process and averages processes, which differs when counts do.

    Args:
      predicted: (B, M, D) float32.
      video: (B, T, H, W, 3).
      visible: (B, V), decoded: (B, M) int32 token indices.
    """
    target = pixel_targets(video, decoded, tubelet=tubelet, patch=patch, normalized=normalized)
    error = jnp.square(predicted - target).mean(axis=-1)
    return Mean.of(error, hidden_weight(visible, decoded))


def hidden_weight(visible: jax.Array, decoded: jax.Array) -> jax.Array:
    """(B, M) float32: 0 where a decoded token was visible to the encoder."""
    # Both lists are sorted, so a binary search answers membership without a B x N scatter.
    position = jax.vmap(jnp.searchsorted)(visible, decoded)
    nearest = jnp.take_along_axis(visible, jnp.minimum(position, visible.shape[1] - 1), axis=1)
    return (nearest != decoded).astype(jnp.float32)
