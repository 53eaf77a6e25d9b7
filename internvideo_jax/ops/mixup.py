"""Mixup and CutMix in batch mode: example i is mixed with example B-1-i.

Arithmetic of timm 0.4.12, which the published fine-tuning recipes used. Later timm versions round
the box differently.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from internvideo_jax.ops.losses import smooth_labels


def cutmix_box(
    height: int, width: int, lam: jax.Array, centre_y: jax.Array, centre_x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The box that CutMix replaces, clipped at the border.

    Args:
      lam: share of the own image that should stay, scalar in 0..1.
      centre_y, centre_x: integer centre of the box.

    Returns:
      ((4,) int32 y0, y1, x0, x1 with exclusive ends, corrected lam = 1 - box area / image area).
    """
    ratio = jnp.sqrt(1.0 - lam)
    half_y = (height * ratio).astype(jnp.int32) // 2
    half_x = (width * ratio).astype(jnp.int32) // 2
    y0, y1 = jnp.clip(centre_y - half_y, 0, height), jnp.clip(centre_y + half_y, 0, height)
    x0, x1 = jnp.clip(centre_x - half_x, 0, width), jnp.clip(centre_x + half_x, 0, width)
    area = (y1 - y0) * (x1 - x0)
    return jnp.stack([y0, y1, x0, x1]), 1.0 - area / (height * width)


def mix_linear(video: jax.Array, lam: jax.Array) -> jax.Array:
    """Mixup: lam * x + (1 - lam) * flipped batch; video (B, T, H, W, 3) float."""
    return video * lam + video[::-1] * (1.0 - lam)


def mix_box(video: jax.Array, box: jax.Array) -> jax.Array:
    """CutMix: inside the box the flipped batch; the same box for all frames and examples."""
    y0, y1, x0, x1 = box
    rows = jnp.arange(video.shape[2])[:, None, None]
    columns = jnp.arange(video.shape[3])[None, :, None]
    inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
    return jnp.where(inside, video[::-1], video)


def mix_targets(label: jax.Array, classes: int, lam: jax.Array, smoothing: float) -> jax.Array:
    """Soft targets (B, K) that belong to a batch mixed with weight `lam`."""
    target = smooth_labels(label, classes, smoothing)
    return target * lam + target[::-1] * (1.0 - lam)


def mix_batch(
    key: jax.Array, video: jax.Array, *, mixup: float, cutmix: float, switch: float = 0.5
) -> tuple[jax.Array, jax.Array]:
    """Draws one kind and one weight for the batch and applies it.

    Args:
      video: (B, T, H, W, 3) float, B even.
      mixup: alpha of the Beta distribution of mixup; 0 = never.
      cutmix: alpha of CutMix; 0 = never.
      switch: probability of CutMix when both are on.

    Returns:
      (mixed video, weight of the own label).
    """
    if video.shape[0] % 2:
        raise ValueError(f"mixing pairs examples: the batch must be even, found {video.shape[0]}")
    kind_key, mix_key, cut_key, box_key = jax.random.split(key, 4)
    height, width = video.shape[2:4]

    def linear(_):
        lam = jax.random.beta(mix_key, mixup, mixup)
        return mix_linear(video, lam), lam

    def box(_):
        y_key, x_key = jax.random.split(box_key)
        lam = jax.random.beta(cut_key, cutmix, cutmix)
        centre_y = jax.random.randint(y_key, (), 0, height)
        centre_x = jax.random.randint(x_key, (), 0, width)
        area, lam = cutmix_box(height, width, lam, centre_y, centre_x)
        return mix_box(video, area), lam

    if mixup > 0 and cutmix > 0:
        return jax.lax.cond(jax.random.bernoulli(kind_key, switch), box, linear, None)
    if cutmix > 0:
        return box(None)
    if mixup > 0:
        return linear(None)
    return video, jnp.float32(1.0)
