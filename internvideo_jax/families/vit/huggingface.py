"""Image transformers in the layout of Hugging Face transformers: `ViTModel`, and with a head.

Last norm, head and pooler, which no model of ours reads, are kept for the way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from internvideo_jax.families.clip.huggingface import (
    ImageModel,
    guess_image,
    heads_of,
    image_model,
    split_rules,
    tower_of,
)
from internvideo_jax.families.clip.weights import IMAGE
from internvideo_jax.layers.clip import IMAGE_FORMS
from internvideo_jax.weights.family import Kind, named
from internvideo_jax.weights.hub_config import HubConfig, Stated, labels
from internvideo_jax.weights.hub_processor import processor
from internvideo_jax.weights.rules import LINEAR, TABLE, TOKEN, Rule, Tensors, linear, norm

KIND, BARE = "vit", "vit."
HEAD, POOLER = "image_head/kernel", "pooler/kernel"
EPS = IMAGE_FORMS[KIND].norm_eps
QKV = {"q": "query", "k": "key", "v": "value"}
_EMBED, _LAYER, _P = BARE + "embeddings.", BARE + "encoder.layer.{i}.", "encoder/blocks/"

RULES = {
    KIND: (
        Rule(_EMBED + "patch_embeddings.projection.weight", "encoder/patch_embed/kernel", IMAGE),
        Rule(_EMBED + "patch_embeddings.projection.bias", "encoder/patch_embed/bias"),
        Rule(_EMBED + "cls_token", "encoder/cls_token", TOKEN),
        Rule(_EMBED + "position_embeddings", "encoder/pos_embed/table", TABLE),
        *norm(_LAYER + "layernorm_before", _P + "norm1"),
        *norm(_LAYER + "layernorm_after", _P + "norm2"),
        *split_rules(QKV, _LAYER + "attention.attention.", _P),
        *linear(_LAYER + "attention.output.dense", _P + "attn/proj"),
        *linear(_LAYER + "intermediate.dense", _P + "mlp/fc1"),
        *linear(_LAYER + "output.dense", _P + "mlp/fc2"),
        *norm(BARE + "layernorm", "encoder/norm_post"),
        Rule(BARE + "pooler.dense.weight", POOLER, LINEAR),
        Rule(BARE + "pooler.dense.bias", "pooler/bias"),
        Rule("classifier.weight", HEAD, LINEAR),
        Rule("classifier.bias", "image_head/bias"),
    )
}
IGNORED = {KIND: {r"vit\.embeddings\.mask_token|decoder\..*": "parts of masked image modelling"}}
OPTIONAL = {KIND: (r"pooler/.*", r"image_head/.*")}


class ViTOfTransformers:
    """See `internvideo_jax.weights.family.HuggingFace`."""

    names = named(RULES, IGNORED, OPTIONAL)
    recipes: Mapping[str, str] = {}  # UniFormerV2 starts from them

    def full_names(self, names: Iterable[str]) -> dict[str, str]:
        """`ViTModel` alone has no `vit.` in front."""
        names = list(names)
        bare = "embeddings.patch_embeddings.projection.weight" in names
        return {name: BARE + name if bare else name for name in names}

    def geometry(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Patch size of a file in this layout."""
        return {"patch": tensors[_EMBED + "patch_embeddings.projection.weight"].shape[-1]}

    def stated(self, kind: str, config: HubConfig) -> Stated:
        """See the protocol."""
        config.only("model_type", "", "vit")
        config.only("hidden_act", "gelu", "gelu")
        config.only("num_channels", 3, 3)
        config.only("qkv_bias", True, True)
        config.only("pooler_act", "tanh", "tanh")
        settings = {
            "encoder": tower_of(config, 768, 12, 12, 3072),
            "resolution": config.size("image_size", 224),
            "patch": config.size("patch_size", 16),
            "norm_eps": config.content.get("layer_norm_eps", 1e-12),
        }
        return Stated(settings, config.classes(), config.near("layer_norm_eps", 1e-12, EPS))

    def made(self, kind: str, settings: Mapping[str, Any], params: Tensors) -> ImageModel:
        """See the protocol."""
        classes = params[HEAD].shape[1] if HEAD in params else 0
        return image_model(kind, settings, classes=classes)

    def guess(
        self, kind: Kind, params: Tensors, geometry: Mapping[str, int], given: Mapping[str, int]
    ) -> dict[str, Any]:
        """See the protocol; how pixels were normalised is not in a file."""
        known = bool(kind.size_of(kind.facts_of_params(params, geometry)))
        heads = heads_of("heads", "encoder", params, given, known)
        return guess_image(params, geometry["patch"], heads)

    def config_json(self, config: ImageModel, classes: Sequence[str] = ()) -> dict[str, Any]:
        """The content of `config.json` for this model."""
        return {
            "architectures": ["ViTForImageClassification" if config.classes else "ViTModel"],
            "model_type": "vit",
            **config.pictures(),
            "hidden_act": "gelu",
            "layer_norm_eps": config.norm_eps or EPS,
            "qkv_bias": True,
            "dtype": "float32",
            **(labels(config.classes, classes) if config.classes else {}),
        }

    def processors(self, config: ImageModel) -> dict[str, dict[str, Any]]:
        """See the protocol."""
        if not config.pixel_mean:
            return {}
        kind = ("image_processor_type", "ViTImageProcessor")
        seen = config.resolution, config.pixel_mean, config.pixel_std
        return {"preprocessor_config.json": processor(kind, *seen, crop=False)}
