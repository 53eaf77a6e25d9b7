"""Names of image transformers in the form of DINO and DeiT, from which UniFormerV2 can start."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.families.clip.weights import IMAGE, QKV_BIAS
from internvideo_jax.weights.rules import QKV, TABLE, TOKEN, Rule, linear, norm

RULES = {
    "vit": (
        *linear("patch_embed.proj", "encoder/patch_embed", IMAGE),
        Rule("cls_token", "encoder/cls_token", TOKEN),
        Rule("pos_embed", "encoder/pos_embed/table", TABLE),
        *norm("blocks.{i}.norm1", "encoder/blocks/norm1"),
        *norm("blocks.{i}.norm2", "encoder/blocks/norm2"),
        Rule("blocks.{i}.attn.qkv.weight", "encoder/blocks/attn/qkv/kernel", QKV),
        Rule("blocks.{i}.attn.qkv.bias", "encoder/blocks/attn/qkv/bias", QKV_BIAS),
        *linear("blocks.{i}.attn.proj", "encoder/blocks/attn/proj"),
        *linear("blocks.{i}.mlp.fc1", "encoder/blocks/mlp/fc1"),
        *linear("blocks.{i}.mlp.fc2", "encoder/blocks/mlp/fc2"),
    )
}
IGNORED = {
    "vit": {r"norm\.(weight|bias)|head\..*|fc_norm\..*": "last norm and head of the image model"}
}
OPTIONAL: dict[str, tuple[str, ...]] = {"vit": ()}


def geometry(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Patch size of a torch file."""
    return {"patch": tensors["patch_embed.proj.weight"].shape[-1]}
