"""VideoMAE in the layout of Hugging Face transformers: `model.safetensors` and `config.json`.

Query, key and value are three matrices there. Biases of query and value are written as `q_bias` and
`v_bias`, as in the published files and as transformers itself writes them; newer versions call the
parameters `query.bias` and `value.bias` and rename on loading. Some 5.x version is said to have
loaded these biases as zeros. 5.23 does not, a test compares the logits; with another version look
at the report of missing keys. Reading knows both spellings.

What the layout cannot say is refused by `config_json`: position tables other than the flat sine
table, cosine attention, LayerScale. One thing it cannot say is left as it is: transformers builds
`fc_norm` of the classifier and the last norm of the decoder with an epsilon of 1e-5 instead of
1e-6, whatever the config says. Features of variance v come out smaller by the factor
sqrt((v + 1e-6) / (v + 1e-5)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from internvideo_jax.families.videomae.model import SIZES, PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.layers.tower import TowerConfig
from internvideo_jax.registry import resolve
from internvideo_jax.weights.family import Kind, named
from internvideo_jax.weights.rules import LINEAR, TOKEN, TUBELET, Rule, Tensors, linear, norm


def _block_rules(torch: str, path: str) -> list[Rule]:
    t, p = f"{torch}.{{i}}.", f"{path}blocks/"
    attention, qkv = t + "attention.attention.", p + "attn/qkv/"
    return [
        *norm(t + "layernorm_before", p + "norm1"),
        *norm(t + "layernorm_after", p + "norm2"),
        Rule(attention + "q_bias", qkv + "q_bias"),
        Rule(attention + "v_bias", qkv + "v_bias"),
        Rule(attention + "query.bias", qkv + "q_bias"),
        Rule(attention + "value.bias", qkv + "v_bias"),
        Rule(attention + "query.weight", qkv + "kernel", LINEAR, part=0),
        Rule(attention + "key.weight", qkv + "kernel", LINEAR, part=1),
        Rule(attention + "value.weight", qkv + "kernel", LINEAR, part=2),
        *linear(t + "attention.output.dense", p + "attn/proj"),
        *linear(t + "intermediate.dense", p + "mlp/fc1"),
        *linear(t + "output.dense", p + "mlp/fc2"),
    ]


_PATCHES = "videomae.embeddings.patch_embeddings.projection."
_ENCODER = (
    Rule(_PATCHES + "weight", "encoder/patch_embed/kernel", TUBELET),
    Rule(_PATCHES + "bias", "encoder/patch_embed/bias"),
    *_block_rules("videomae.encoder.layer", "encoder/"),
    *norm("videomae.layernorm", "encoder/norm"),
)

# The same parameters as of `weights.RULES`, under their names of transformers.
RULES = {
    "videomae_pretrain": (
        *_ENCODER,
        Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", LINEAR),
        Rule("mask_token", "mask_token", TOKEN),
        *_block_rules("decoder.decoder_layers", "decoder/"),
        *norm("decoder.norm", "decoder/norm"),
        *linear("decoder.head", "decoder/head"),
    ),
    "videomae_classifier": (*_ENCODER, *norm("fc_norm", "fc_norm"), *linear("classifier", "head")),
}
IGNORED = {
    "videomae_pretrain": {
        r"(videomae\.embeddings\.|decoder\.)?position_embeddings": "fixed position table, rebuilt"
    },
    "videomae_classifier": {
        r"videomae\.embeddings\.position_embeddings": "fixed position table, rebuilt"
    },
}
_BIAS = r"/.*/attn/qkv/[qv]_bias"
OPTIONAL = {
    "videomae_pretrain": (
        "encoder" + _BIAS,
        "decoder" + _BIAS,
        r"decoder/.*|encoder_to_decoder/.*|mask_token",
    ),
    "videomae_classifier": ("encoder" + _BIAS, r"fc_norm/.*", r"encoder/norm/.*", r"head/.*"),
}


class VideoMAEOfTransformers:
    """See `internvideo_jax.weights.family.HuggingFace`."""

    names = named(RULES, IGNORED, OPTIONAL)

    def geometry(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Tubelet and patch size of a file in this layout."""
        shape = tensors[_PATCHES + "weight"].shape
        return {"tubelet": shape[2], "patch": shape[3]}

    def config_json(
        self, config: PretrainConfig | VideoMAEClassifierConfig, classes: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The content of `config.json` for this model.

        Args:
          classes: names of the classes; by default `LABEL_0`, `LABEL_1` ..., as transformers does.

        Raises:
          ValueError: the layout cannot express this model, with what and why.
        """
        refuse_unsayable(config)
        encoder = config.encoder
        content: dict[str, Any] = {
            "model_type": "videomae",
            "image_size": config.resolution,
            "patch_size": config.patch,
            "num_channels": 3,
            "num_frames": config.frames,
            "tubelet_size": config.tubelet,
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.heads,
            "intermediate_size": encoder.hidden,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-6,  # its default is 1e-12
            "qkv_bias": config.qkv_bias,
            "dtype": "float32",
        }
        if isinstance(config, PretrainConfig):
            decoder = config.decoder
            return content | {
                "architectures": ["VideoMAEForPreTraining"],
                "use_mean_pooling": False,  # gives the encoder its last norm
                "decoder_hidden_size": decoder.width,
                "decoder_num_hidden_layers": decoder.depth,
                "decoder_num_attention_heads": decoder.heads,
                "decoder_intermediate_size": decoder.hidden,
                "norm_pix_loss": True,
            }
        if classes and len(classes) != config.classes:
            raise ValueError(f"{len(classes)} class names for a head of {config.classes} classes")
        names = list(classes) or [f"LABEL_{number}" for number in range(config.classes)]
        return content | {
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": config.pooling == "mean",
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
        }

    def guess_config(
        self, kind: Kind, params: Tensors, geometry: Mapping[str, int], given: Mapping[str, int]
    ) -> Any:
        """The config of a model from its parameters, as far as they tell.

        Number of heads, frames and pixels are not in them: heads are those of the published model
        of the same shapes, the rest is 16 frames of 224 pixels, with the flat sine table.

        Args:
          given: `frames`, `resolution`, `heads`, `decoder_heads` where they are known.

        Raises:
          ValueError: no published model has these shapes and no heads are given.
        """
        facts = kind.facts_of_params(params, geometry)
        size = kind.size_of(facts)
        preset = SIZES.get(size)

        def heads(flag: str, known: int) -> int:
            found = given.get(flag, known)
            if not found:
                raise ValueError(
                    f"the file does not tell the number of heads, and no published model is "
                    f"{facts['width']} wide with {facts['depth']} layers; add --{flag}"
                )
            return found

        settings: dict[str, Any] = {
            **geometry,
            "encoder": TowerConfig(
                facts["width"],
                facts["depth"],
                heads("heads", facts.get("heads", preset.encoder.heads if preset else 0)),
                facts["hidden"],
            ),
            "frames": given.get("frames", 16),
            "resolution": given.get("resolution", 224),
            "qkv_bias": "encoder/blocks/attn/qkv/q_bias" in params,
            "cosine": "encoder/blocks/attn/scale" in params,
            "layer_scale": 1.0 if "encoder/blocks/gamma1" in params else 0.0,
            "pos_table": "learnable" if "encoder/pos_embed" in params else "sincos",
        }
        if kind.name == "videomae_classifier":
            for fact, meaning in (("classes", "head"), ("pooling", "norm before the head")):
                if fact not in facts:
                    raise ValueError(f"the file has no {meaning}: not a whole classifier")
                settings[fact] = facts[fact]
        elif "decoder_width" not in facts:
            raise ValueError("the file has no decoder: not a whole pre-training model")
        else:
            settings["decoder"] = TowerConfig(
                facts["decoder_width"],
                facts["decoder_depth"],
                heads("decoder_heads", preset.decoder_heads if preset else 0),
                params["decoder/blocks/mlp/fc1/kernel"].shape[2],
            )
        return resolve("model", kind.name)(**settings)


def refuse_unsayable(config: PretrainConfig | VideoMAEClassifierConfig) -> None:
    """Raises ValueError when transformers would compute something else with these weights."""
    base = (config.pos_frames, config.pos_size) == (config.frames, config.resolution)
    reasons = {
        f"{config.pos_table} position table (it builds the flat sine table itself)": (
            config.pos_table != "sincos" and not (config.pos_table == "resized" and base)
        ),
        "cosine attention": config.cosine,
        "LayerScale": config.layer_scale > 0,
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ValueError(
            f"the Hugging Face layout has no {'; no '.join(found)}. Export with the original torch "
            "names instead (without --layout)"
        )
