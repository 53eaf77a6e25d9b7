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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from internvideo_jax.families.clip.huggingface import tower_of, towers
from internvideo_jax.families.videomae.model import SIZES, PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.layers.tower import TowerConfig
from internvideo_jax.registry import resolve
from internvideo_jax.weights.family import Kind, named
from internvideo_jax.weights.hub_config import HubConfig, Stated, labels
from internvideo_jax.weights.hub_processor import processor
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


BARE = "videomae."
EPS = 1e-6  # of all layer norms here
_PATCHES = BARE + "embeddings.patch_embeddings.projection."
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
    recipes: Mapping[str, str] = {
        "videomae_pretrain": "videomae/pretrain:size=base",
        "videomae_classifier": "videomae/finetune:size=base",
    }

    def full_names(self, names: Iterable[str]) -> dict[str, str]:
        """`VideoMAEModel` alone has no `videomae.` in front."""
        names = list(names)
        bare = _PATCHES.removeprefix(BARE) + "weight" in names
        return {name: BARE + name if bare else name for name in names}

    def stated(self, kind: str, config: HubConfig) -> Stated:
        """See the protocol."""
        config.only("model_type", "", "videomae")
        config.only("hidden_act", "gelu", "gelu")
        config.only("num_channels", 3, 3)
        bias = "qv_bias" if "qv_bias" in config.content else "qkv_bias"  # newer and older versions
        settings: dict[str, Any] = {
            "encoder": tower_of(config, 768, 12, 12, 3072),
            "frames": config.size("num_frames", 16),
            "resolution": config.size("image_size", 224),
            "tubelet": config.size("tubelet_size", 2),
            "patch": config.size("patch_size", 16),
            "qkv_bias": config.flag(bias, True),
        }
        remarks = config.near("layer_norm_eps", 1e-12, EPS)
        if kind == "videomae_classifier":
            pooling = "mean" if config.flag("use_mean_pooling", True) else "first_token"
            return Stated(settings | {"pooling": pooling}, config.classes(), remarks)
        config.only("use_mean_pooling", True, False)  # else the encoder has no last norm
        decoder = {
            name.removeprefix("decoder_"): value
            for name, value in config.content.items()
            if name.startswith("decoder_")
        }
        inner = HubConfig(decoder, f"{config.place}, decoder")
        return Stated(settings | {"decoder": tower_of(inner, 384, 4, 6, 1536)}, (), remarks)

    def made(self, kind: str, settings: Mapping[str, Any], params: Tensors) -> Any:
        """See the protocol."""
        more: dict[str, Any] = {
            name: TowerConfig(**settings[name])
            for name in ("encoder", "decoder")
            if isinstance(settings.get(name), Mapping)
        }
        if kind == "videomae_classifier":
            if "head/bias" not in params:
                raise ValueError("the file has no head: not a whole classifier")
            more["classes"] = len(params["head/bias"])
        elif "decoder/norm/scale" not in params:
            raise ValueError("the file has no decoder: not a whole pre-training model")
        return resolve("model", kind)(**{**settings, **more})

    def processors(
        self, config: PretrainConfig | VideoMAEClassifierConfig
    ) -> dict[str, dict[str, Any]]:
        """See the protocol: of lists of pictures, and of videos."""
        seen = config.resolution, config.pixel_mean, config.pixel_std
        kinds = {
            "preprocessor_config.json": ("image_processor_type", "VideoMAEImageProcessor"),
            "video_preprocessor_config.json": ("video_processor_type", "VideoMAEVideoProcessor"),
        }
        found = {file: processor(kind, *seen) for file, kind in kinds.items()}
        found["video_preprocessor_config.json"] |= {
            "num_frames": config.frames,
            "do_sample_frames": False,  # frames are the caller's to choose
        }
        return found

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
            **towers(encoder),
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.02,
            "layer_norm_eps": EPS,  # its default is 1e-12
            "qkv_bias": config.qkv_bias,
            "dtype": "float32",
        }
        if isinstance(config, PretrainConfig):
            decoder = config.decoder
            return content | {
                "architectures": ["VideoMAEForPreTraining"],
                "use_mean_pooling": False,  # gives the encoder its last norm
                **{f"decoder_{name}": size for name, size in towers(decoder).items()},
                "norm_pix_loss": True,
            }
        return content | {
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": config.pooling == "mean",
            **labels(config.classes, classes),
        }

    def guess(
        self, kind: Kind, params: Tensors, geometry: Mapping[str, int], given: Mapping[str, int]
    ) -> dict[str, Any]:
        """See the protocol.

        Number of heads, frames and pixels are not in a file: heads are those of the published model
        of the same shapes, the rest is 16 frames of 224 pixels, with the flat sine table.

        Args:
          given: `frames`, `resolution`, `heads`, `decoder_heads` where they are known.

        Raises:
          ValueError: no published model has these shapes and no heads are given.
        """
        facts = kind.facts_of_params(params, geometry)
        preset = SIZES.get(kind.size_of(facts))

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
            if "pooling" not in facts:
                raise ValueError("the file has no norm before the head: not a whole classifier")
            settings["pooling"] = facts["pooling"]
        elif "decoder_width" in facts:
            settings["decoder"] = TowerConfig(
                facts["decoder_width"],
                facts["decoder_depth"],
                heads("decoder_heads", preset.decoder_heads if preset else 0),
                params["decoder/blocks/mlp/fc1/kernel"].shape[2],
            )
        return settings


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
