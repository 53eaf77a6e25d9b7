"""Names of InternVL-C's vision tower: InternVideo2's, with a patch embedding of single pictures.

The published file `internvl_c_13b_224px.pth` has the language half beside it, under `module`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.families.clip.weights import IMAGE
from internvideo_jax.families.internvideo2.weights import encoder_rules, pool_rules

KIND = "internvl"
KERNEL = "patch_embed.proj.weight"
RULES = {KIND: (*encoder_rules(patch=IMAGE), *pool_rules())}
IGNORED = {
    KIND: {
        r"transformer\..*|text_projection": "language half",
        r"logit_scale": "temperature of pictures and captions",
    }
}
# The pool belongs to the tower: a teacher without it would have neither attention nor embedding.
OPTIONAL = {
    KIND: (
        r"encoder/blocks/attn/qkv/bias",
        r"encoder/pos_embed/(spatial|temporal|cls)",
    )
}


def recognise(tensors: Mapping[str, np.ndarray]) -> str | None:
    """`internvl`, or None when it is something else."""
    kernel = tensors.get(KERNEL)
    if kernel is None or kernel.ndim != 4:  # a video model's has five axes
        return None
    marks = ("blocks.0.attn.q_norm.weight", "clip_projector.cross_attn.q.weight")
    return KIND if all(mark in tensors for mark in marks) else None


def geometry(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Patch size of a torch file."""
    return {"patch": tensors[KERNEL].shape[-1]}
