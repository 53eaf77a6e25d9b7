"""From frames to tubelets: cutting and normalising."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def token_grid(frames: int, resolution: int, tubelet: int, patch: int) -> tuple[int, int, int]:
    """(t, h, w) token counts; ValueError when the clip cannot be cut evenly."""
    if frames % tubelet:
        raise ValueError(f"{frames} frames cannot be cut into tubelets of {tubelet} frames")
    if resolution % patch:
        near = max(patch, resolution // patch * patch)
        raise ValueError(
            f"image size {resolution} is not divisible by the patch size {patch}; "
            f"the nearest sizes are {near} and {near + patch}"
        )
    return frames // tubelet, resolution // patch, resolution // patch


def patchify(video: jax.Array, tubelet: int, patch: int) -> jax.Array:
    """Cuts a clip into tubelets, tokens ordered time-major, then row, then column.

    Args:
      video: (B, T, H, W, 3), any dtype.

    Returns:
      (B, N, tubelet * patch * patch * 3); within a token frame, row, column, channel, which is
      the order of the VideoMAE target.
    """
    return rearrange(
        video, "b (t f) (h p) (w q) c -> b (t h w) (f p q c)", f=tubelet, p=patch, q=patch
    )


def unpatchify(
    tokens: jax.Array, grid: tuple[int, int, int], tubelet: int, patch: int
) -> jax.Array:
    """Inverse of `patchify`: (B, N, D) -> (B, T, H, W, 3)."""
    t, h, w = grid
    return rearrange(
        tokens,
        "b (t h w) (f p q c) -> b (t f) (h p) (w q) c",
        t=t,
        h=h,
        w=w,
        f=tubelet,
        p=patch,
        q=patch,
    )


def to_unit(pixels: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 0..1; floats are taken to be in 0..1 already."""
    if pixels.dtype == jnp.uint8:
        return pixels.astype(jnp.float32) / 255.0
    return pixels.astype(jnp.float32)


def normalize(pixels: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std per colour in float32.

    Args:
      pixels: (..., D) with D a multiple of 3, channel fastest; uint8 or float in 0..1.
    """
    repeat = pixels.shape[-1] // 3
    shift = jnp.tile(jnp.asarray(mean, jnp.float32), repeat)
    inverse = 1.0 / jnp.tile(jnp.asarray(std, jnp.float32), repeat)
    return (to_unit(pixels) - shift) * inverse
