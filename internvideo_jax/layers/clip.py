"""What the transformers of CLIP share, and the video models that are made from them.

Radford et al. 2021 (CLIP). The tokens of its image transformer: patches without bias, a class
token, one learned table of positions, and a norm before the first block.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.layers.attention import AttentionConfig
from internvideo_jax.layers.block import BlockConfig, NormConfig, layer_norm
from internvideo_jax.layers.init import torch_uniform
from internvideo_jax.layers.linear import Linear
from internvideo_jax.layers.mlp import MLPConfig
from internvideo_jax.layers.tower import TowerConfig

NORM_EPS = 1e-5  # of all its layer norms


@dataclasses.dataclass(frozen=True)
class ImageForm:
    """What sets image transformers apart that video models start from."""

    activation: str
    norm_eps: float
    norm_pre: bool  # a norm before the first block
    patch_bias: bool


CLIP = ImageForm("quick_gelu", NORM_EPS, norm_pre=True, patch_bias=False)
IMAGE_FORMS = {
    "clip": CLIP,
    # DINO (Caron et al. 2021), DeiT, and supervised ones of the same form.
    "vit": ImageForm("gelu", 1e-6, norm_pre=False, patch_bias=True),
}


def clip_block(
    tower: TowerConfig, attention: str = "auto", *, causal: bool = False, form: ImageForm = CLIP
) -> BlockConfig:
    """A block of a tower with a bias on the key, and activation and epsilon of the form."""
    return BlockConfig(
        tower.width,
        AttentionConfig(tower.heads, key_bias=True, causal=causal, form=attention),
        MLPConfig(tower.hidden, form.activation),
        norm=NormConfig(eps=form.norm_eps),
    )


class PositionTable(nnx.Module):
    """One learned vector per position and, with `frames`, one per frame that starts at zero.

    In an image the first position is the class token's.
    """

    def __init__(self, rows: int, width: int, *, frames: int = 0, std: float = 0.0, rngs: nnx.Rngs):
        """`std` is the initial standard deviation of the positions, by default width ** -0.5."""
        table = jax.random.normal(rngs.params(), (rows, width)) * (std or width**-0.5)
        self.table = nnx.Param(table)
        self.temporal = nnx.Param(jnp.zeros((frames, width))) if frames else None


class ImageTokens(nnx.Module):
    """Parameters between the pixels and the first block; models add how they put them together."""

    def __init__(
        self,
        values: int,
        rows: int,
        width: int,
        *,
        frames: int = 0,
        form: ImageForm = CLIP,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """`values` pixels of a patch; `rows` and `frames` of the position table."""
        self.patch_embed = Linear(
            values,
            width,
            use_bias=form.patch_bias,
            dtype=dtype,
            rngs=rngs,
            kernel_init=lambda key, shape, _=None: torch_uniform(key, shape, values),
        )
        self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (width,)) * width**-0.5)
        self.pos_embed = PositionTable(rows, width, frames=frames, rngs=rngs)
        self.norm_pre = (
            layer_norm(width, dtype=dtype, rngs=rngs, eps=form.norm_eps) if form.norm_pre else None
        )

    def normalised(self, x: jax.Array) -> jax.Array:
        """What the first block takes: (..., D) after the norm, where there is one."""
        return x if self.norm_pre is None else self.norm_pre(x)


def projection(width: int, embedding: int, *, rngs: nnx.Rngs) -> Linear:
    """The map into the space that images and captions share: no bias, float32."""
    return Linear(
        width,
        embedding,
        use_bias=False,
        rngs=rngs,
        kernel_init=lambda key, shape, _=None: jax.random.normal(key, shape) * width**-0.5,
    )


def inflate(kernel: np.ndarray, frames: int, *, centre: bool = True) -> np.ndarray:
    """A patch embedding of single frames as one over `frames` frames.

    Args:
      kernel: (values, D).
      centre: the middle frame gets it and the others zero; else every frame an equal share.

    Returns:
      (frames * values, D) in the dtype of `kernel`.
    """
    video = np.zeros((frames, *kernel.shape), kernel.dtype)
    if centre:
        video[frames // 2] = kernel
    else:
        video[:] = kernel / frames
    return video.reshape(-1, kernel.shape[1])
