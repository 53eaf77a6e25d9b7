"""InternVL's vision tower in the layout of Hugging Face transformers: `InternVLVisionModel`.

It is there without InternVL-C's attention pool, and inside `InternVLForConditionalGeneration` below
`vision_tower.`, whose other parts are left out. Of its two forms ours is that of InternViT-6B, with
RMSNorm and normalised queries and keys; the 300M form has LayerNorm, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from internvideo_jax.families.clip.huggingface import (
    QKV,
    ImageModel,
    guess_image,
    image_model,
    split_rules,
    tower_of,
)
from internvideo_jax.families.clip.weights import IMAGE
from internvideo_jax.families.internvideo2.internvl_weights import KIND
from internvideo_jax.families.internvideo2.model import SIZES
from internvideo_jax.layers.attention import RMS_EPS
from internvideo_jax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from internvideo_jax.weights.family import Kind, named
from internvideo_jax.weights.hub_config import HubConfig, Stated
from internvideo_jax.weights.hub_processor import clip_processors
from internvideo_jax.weights.rules import TABLE, TOKEN, Rule, Tensors, linear

TOWER = re.compile(r"(?:model\.)?vision_tower\.(.+)")
# Name there -> here; the exact form is what it calls gelu.
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_T, _P = "encoder.layer.{i}.", "encoder/blocks/"
RULES = {
    KIND: (
        Rule("embeddings.patch_embeddings.projection.weight", "encoder/patch_embed/kernel", IMAGE),
        Rule("embeddings.patch_embeddings.projection.bias", "encoder/patch_embed/bias"),
        Rule("embeddings.cls_token", "encoder/cls_token", TOKEN),
        Rule("embeddings.position_embeddings", "encoder/pos_embed/table", TABLE),
        Rule(_T + "layernorm_before.weight", _P + "norm1/scale"),
        Rule(_T + "layernorm_after.weight", _P + "norm2/scale"),
        *split_rules(QKV, _T + "attention.", _P),
        Rule(_T + "attention.q_norm.weight", _P + "attn/q_norm/scale"),
        Rule(_T + "attention.k_norm.weight", _P + "attn/k_norm/scale"),
        *linear(_T + "attention.projection_layer", _P + "attn/proj"),
        *linear(_T + "mlp.fc1", _P + "mlp/fc1"),
        *linear(_T + "mlp.fc2", _P + "mlp/fc2"),
        Rule(_T + "lambda_1", _P + "gamma1"),
        Rule(_T + "lambda_2", _P + "gamma2"),
    )
}
IGNORED = {
    KIND: {
        r"(model\.)?(language_model|multi_modal_projector)\..*|lm_head\..*": "language half",
        r"embeddings\.mask_token": "of masked image modelling",
    }
}
OPTIONAL = {KIND: (r"encoder/blocks/attn/qkv/bias", r"encoder/blocks/attn/[qk]_norm/scale")}


class InternVLOfTransformers:
    """See `internvideo_jax.weights.family.HuggingFace`."""

    names = named(RULES, IGNORED, OPTIONAL)
    recipes: Mapping[str, str] = {}  # InternVideo2 starts from it

    def full_names(self, names: Iterable[str]) -> dict[str, str]:
        """Without `vision_tower.`, which the whole of InternVL has in front."""
        return {name: found[1] if (found := TOWER.fullmatch(name)) else name for name in names}

    def geometry(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Patch size of a file in this layout."""
        return {"patch": tensors["embeddings.patch_embeddings.projection.weight"].shape[-1]}

    def stated(self, kind: str, config: HubConfig) -> Stated:
        """See the protocol."""
        config.only("model_type", "", "internvl_vision", "internvl")
        if config.content["model_type"] == "internvl":
            config = config.part("vision_config")
        config.only("norm_type", "layer_norm", "rms_norm")
        config.only("use_mean_pooling", True, True)
        config.only("use_absolute_position_embeddings", True, True)
        config.only("num_channels", 3, 3)
        settings = {
            "encoder": tower_of(config, 1024, 24, 16, 4096),
            "resolution": config.size("image_size", 448),
            "patch": config.size("patch_size", 14),
            "qkv_bias": config.flag("attention_bias", False),
            "qk_norm": config.flag("use_qk_norm", False),
            "activation": ACTIVATIONS[config.only("hidden_act", "gelu", *ACTIVATIONS)],
        }
        return Stated(settings, remarks=config.near("layer_norm_eps", RMS_EPS, RMS_EPS))

    def made(self, kind: str, settings: Mapping[str, Any], params: Tensors) -> ImageModel:
        """See the protocol.

        Raises:
          ValueError: the weights have an attention pool, which the layout lacks.
        """
        if any(path.startswith("pool/") for path in params):
            raise ValueError(
                "InternVLVisionModel of transformers has no attention pool, these weights have "
                "one (pool/...). Export with the original torch names instead (without --layout)"
            )
        return image_model(kind, settings)

    def guess(
        self, kind: Kind, params: Tensors, geometry: Mapping[str, int], given: Mapping[str, int]
    ) -> dict[str, Any]:
        """See the protocol; heads are those of the published model of the same width."""
        width = params["encoder/blocks/norm1/scale"].shape[1]
        known = {size["encoder"].width: size["encoder"].heads for size in SIZES.values()}
        heads = given.get("heads", known.get(width, 0))
        if not heads:
            raise ValueError(
                f"the file does not tell the number of heads, and no published model is {width} "
                "wide; add --heads"
            )
        return guess_image(params, geometry["patch"], heads) | {
            "qkv_bias": "encoder/blocks/attn/qkv/bias" in params,
            "qk_norm": "encoder/blocks/attn/q_norm/scale" in params,
            "pixel_mean": IMAGENET_MEAN,
            "pixel_std": IMAGENET_STD,
        }

    def config_json(self, config: ImageModel, classes: Sequence[str] = ()) -> dict[str, Any]:
        """The content of `config.json` for this model."""
        return {
            "architectures": ["InternVLVisionModel"],
            "model_type": "internvl_vision",
            **config.pictures(),
            "hidden_act": "gelu" if config.activation == "gelu" else "gelu_pytorch_tanh",
            "attention_bias": config.qkv_bias,
            "use_qk_norm": config.qk_norm,
            "norm_type": "rms_norm",
            "layer_norm_eps": RMS_EPS,
            "use_mean_pooling": True,
            "use_absolute_position_embeddings": True,
            "dtype": "float32",
        }

    def processors(self, config: ImageModel) -> dict[str, dict[str, Any]]:
        """See the protocol."""
        return clip_processors(config.resolution, config.pixel_mean, config.pixel_std)
