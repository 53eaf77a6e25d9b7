"""Names of image transformers in the form of DINO and DeiT, from which UniFormerV2 can start."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.families.clip.weights import IMAGE, QKV_BIAS
from internvideo_jax.weights.rules import LINEAR, QKV, TABLE, TOKEN, Rule

RULES = {
    "vit": (
        Rule("patch_embed.proj.weight", "encoder/patch_embed/kernel", IMAGE),
        Rule("patch_embed.proj.bias", "encoder/patch_embed/bias"),
        Rule("cls_token", "encoder/cls_token", TOKEN),
        Rule("pos_embed", "encoder/pos_embed/table", TABLE),
        Rule("blocks.{i}.norm1.weight", "encoder/blocks/norm1/scale"),
        Rule("blocks.{i}.norm1.bias", "encoder/blocks/norm1/bias"),
        Rule("blocks.{i}.norm2.weight", "encoder/blocks/norm2/scale"),
        Rule("blocks.{i}.norm2.bias", "encoder/blocks/norm2/bias"),
        Rule("blocks.{i}.attn.qkv.weight", "encoder/blocks/attn/qkv/kernel", QKV),
        Rule("blocks.{i}.attn.qkv.bias", "encoder/blocks/attn/qkv/bias", QKV_BIAS),
        Rule("blocks.{i}.attn.proj.weight", "encoder/blocks/attn/proj/kernel", LINEAR),
        Rule("blocks.{i}.attn.proj.bias", "encoder/blocks/attn/proj/bias"),
        Rule("blocks.{i}.mlp.fc1.weight", "encoder/blocks/mlp/fc1/kernel", LINEAR),
        Rule("blocks.{i}.mlp.fc1.bias", "encoder/blocks/mlp/fc1/bias"),
        Rule("blocks.{i}.mlp.fc2.weight", "encoder/blocks/mlp/fc2/kernel", LINEAR),
        Rule("blocks.{i}.mlp.fc2.bias", "encoder/blocks/mlp/fc2/bias"),
    )
}
IGNORED = {
    "vit": {r"norm\.(weight|bias)|head\..*|fc_norm\..*": "last norm and head of the image model"}
}
OPTIONAL: dict[str, tuple[str, ...]] = {"vit": ()}


def geometry(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Patch size of a torch file."""
    return {"patch": tensors["patch_embed.proj.weight"].shape[-1]}
