"""Image transformers of the form of DINO and DeiT as the weight tools know them."""

from __future__ import annotations

from internvideo_jax.families.clip.family import SHAPES
from internvideo_jax.families.vit import weights
from internvideo_jax.families.vit.huggingface import ViTOfTransformers
from internvideo_jax.weights.family import Family, Kind, named

FAMILY = Family(
    title="image transformers",
    kinds=(
        Kind(
            name="vit",
            title="image transformer (DINO, DeiT); initial weights for UniFormerV2 with "
            "backbone=vit",
            names=named(weights.RULES, weights.IGNORED, weights.OPTIONAL)["vit"],
            sizes=SHAPES,
        ),
    ),
    geometry=weights.geometry,
    huggingface=ViTOfTransformers(),
)
