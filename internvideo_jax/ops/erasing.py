"""Random erasing of clips on the device (Zhong et al. 2017), as in the fine-tuning recipes.

Every example draws its own boxes from its own key; a box is the same for all frames of the clip,
its noise is drawn anew in every frame. All shapes are static and examples do not meet, so the batch
axis may be sharded in any way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

MODES = ("const", "rand", "pixel")
TRIES = 100  # as many as the reference; after that the clip stays whole


def check(mode: str, probability: float, area: Sequence[float], ratio: Sequence[float]) -> None:
    """Raises ValueError for an unknown mode, or where something is erased a range without end."""
    if mode not in MODES:
        raise ValueError(f"unknown erasing mode {mode!r}; known: {', '.join(MODES)}")
    if not 0 <= probability <= 1:
        raise ValueError(f"erasing probability must be in 0..1, found {probability}")
    if probability == 0:
        return
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"erasing area must be two increasing shares in 0..1, found {area}")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"erasing ratio must be two increasing positive numbers, found {ratio}")


def erasing_boxes(
    keys: jax.Array,
    height: int,
    width: int,
    *,
    probability: float,
    area: Sequence[float] = (0.02, 1 / 3),
    ratio: Sequence[float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """One box per example.

    The area is uniform, the aspect ratio (height over width) log-uniform, both drawn again until
    the box is smaller than the frame in both directions.

    Args:
      keys: (B,) random keys.
      probability: chance that an example gets a box.
      area: range of the box's share of the frame.
      ratio: range of the aspect ratio.

    Returns:
      (B, 4) int32 y0, y1, x0, x1 with exclusive ends; all zero where nothing is erased.
    """

    low, high = math.log(ratio[0]), math.log(ratio[1])

    def one(key):
        draws = jax.random.uniform(key, (3 + 2 * TRIES,))  # one call, which is cheaper than five
        coin, y, x = draws[:3]
        wanted = height * width * (area[0] + (area[1] - area[0]) * draws[3 : 3 + TRIES])
        aspect = jnp.exp(low + (high - low) * draws[3 + TRIES :])
        heights = jnp.round(jnp.sqrt(wanted * aspect)).astype(jnp.int32)
        widths = jnp.round(jnp.sqrt(wanted / aspect)).astype(jnp.int32)
        fits = (heights < height) & (widths < width)
        first = jnp.argmax(fits)
        h, w = heights[first], widths[first]
        y = (y * (height - h + 1)).astype(jnp.int32)
        x = (x * (width - w + 1)).astype(jnp.int32)
        erased = fits[first] & (coin < probability)
        return jnp.where(erased, jnp.stack([y, y + h, x, x + w]), 0)

    return jax.vmap(one)(keys)


def erase(
    video: jax.Array,
    keys: jax.Array,
    *,
    probability: float,
    mode: str = "pixel",
    area: Sequence[float] = (0.02, 1 / 3),
    ratio: Sequence[float] = (0.3, 1 / 0.3),
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> jax.Array:
    """Replaces a box of some clips.

    The recipes erase after normalising, with zeros or unit normal noise. On pixels that are not
    normalised yet, give the constants of that normalisation as `mean` and `std`; the outcome is the
    same.

    Args:
      video: (B, T, H, W, 3) float; uint8 cannot hold the noise, so convert it first
        (`pixels.to_unit`).
      keys: (B,) random keys.
      mode: `const` fills with the mean, `rand` with one colour per frame, `pixel` with one value
        per pixel, frame and colour.

    Raises:
      ValueError: integer pixels, an unknown mode, a bad range.
    """
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise ValueError(f"erasing needs float pixels, found {video.dtype}; apply to_unit first")
    check(mode, probability, area, ratio)
    _, frames, height, width, colours = video.shape
    keys = jax.vmap(lambda key: jax.random.split(key))(keys)
    boxes = erasing_boxes(
        keys[:, 0], height, width, probability=probability, area=area, ratio=ratio
    )
    shape = {
        "const": None,
        "rand": (frames, 1, 1, colours),
        "pixel": (frames, height, width, colours),
    }[mode]
    centre, scale = jnp.asarray(mean, video.dtype), jnp.asarray(std, video.dtype)
    if shape is None:
        fill = centre
    else:
        noise = jax.vmap(lambda key: jax.random.normal(key, shape, video.dtype))(keys[:, 1])
        fill = centre + scale * noise
    y0, y1, x0, x1 = (edge[:, None, None, None, None] for edge in boxes.T)
    rows = jnp.arange(height)[:, None, None]
    columns = jnp.arange(width)[None, :, None]
    inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
    return jnp.where(inside, fill, video)
