"""Names of OpenAI's CLIP, which open_clip has too, and of all models that are made from it.

`clip` is a whole file, `clip_visual` the image half cut out of one, `clip_frames` that half as
Unmasked Teacher has it, with a patch embedding that has an axis of one frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from internvideo_jax.weights.rules import QKV, SAME, Layout, Rule, linear, norm


def _frames_to_torch(x: np.ndarray, shape: Mapping[str, int]) -> np.ndarray:
    patch = shape["patch"]
    return x.reshape(-1, patch, patch, 3, x.shape[1]).transpose(4, 3, 0, 1, 2)


# (D, 3, frames, p, p) -> matmul kernel (frames * p * p * 3, D).
FRAMES = Layout(
    lambda x: x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]),
    _frames_to_torch,
    (-1, 3, -1, -1, -1),
)
ONE_FRAME = dataclasses.replace(FRAMES, torch=(-1, 3, 1, -1, -1))
# The same of an image model: (D, 3, p, p).
IMAGE = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x, shape: _frames_to_torch(x, shape)[:, :, 0],
    (-1, 3, -1, -1),
)
# Biases of query, key and value in one vector: (3 * D,) -> (3, D).
QKV_BIAS = Layout(lambda x: x.reshape(3, -1), lambda x, _: x.reshape(-1), (-1,))


def attention_rules(t: str, p: str) -> list[Rule]:
    """Norms, attention and MLP of a block."""
    return [
        *norm(t + "ln_1", p + "norm1"),
        *norm(t + "ln_2", p + "norm2"),
        Rule(t + "attn.in_proj_weight", p + "attn/qkv/kernel", QKV),
        Rule(t + "attn.in_proj_bias", p + "attn/qkv/bias", QKV_BIAS),
        *linear(t + "attn.out_proj", p + "attn/proj"),
        *linear(t + "mlp.c_fc", p + "mlp/fc1"),
        *linear(t + "mlp.c_proj", p + "mlp/fc2"),
    ]


def image_rules(prefix: str, layout: Layout) -> list[Rule]:
    """The image transformer up to its last block."""
    return [
        Rule(prefix + "conv1.weight", "encoder/patch_embed/kernel", layout),
        Rule(prefix + "class_embedding", "encoder/cls_token"),
        Rule(prefix + "positional_embedding", "encoder/pos_embed/table"),
        *norm(prefix + "ln_pre", "encoder/norm_pre"),
        *attention_rules(prefix + "transformer.resblocks.{i}.", "encoder/blocks/"),
    ]


def image_head_rules(prefix: str) -> list[Rule]:
    """What follows: the norm, and the projection, which torch keeps as (in, out) here."""
    return [
        *norm(prefix + "ln_post", "encoder/norm_post"),
        Rule(prefix + "proj", "encoder/proj/kernel", SAME),
    ]


def text_rules(prefix: str) -> list[Rule]:
    """The text transformer."""
    return [
        Rule(prefix + "token_embedding.weight", "text/token_embed"),
        Rule(prefix + "positional_embedding", "text/pos_embed/table"),
        *attention_rules(prefix + "transformer.resblocks.{i}.", "text/blocks/"),
        *norm(prefix + "ln_final", "text/norm"),
        Rule(prefix + "text_projection", "text/proj/kernel", SAME),
    ]


RULES = {
    "clip": (*image_rules("visual.", IMAGE), *image_head_rules("visual."), *text_rules("")),
    "clip_visual": (*image_rules("", IMAGE), *image_head_rules("")),
    "clip_frames": (*image_rules("", ONE_FRAME), *image_head_rules("")),
}
IGNORED = {
    "clip": {
        r"logit_scale": "no model takes CLIP's temperature over: ViCLIP starts at 0.01",
        r"input_resolution|context_length|vocab_size": "settings that the shapes tell as well",
    },
    "clip_visual": {},
    "clip_frames": {},
}

# What a file may lack, always as a whole (rules.check_complete).
OPTIONAL = {
    "clip": (r"text/.*",),
    "clip_visual": (r"encoder/(norm_post|proj)/.*",),
    "clip_frames": (r"encoder/(norm_post|proj)/.*",),
}


def geometry(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Patch size of a torch file; {} for one without an image half."""
    for name in ("conv1.weight", "visual.conv1.weight", "vision_encoder.conv1.weight"):
        if name in tensors:
            return {"patch": tensors[name].shape[-1]}
    return {}
