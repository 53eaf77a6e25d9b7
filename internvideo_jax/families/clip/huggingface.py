"""CLIP in the layout of Hugging Face transformers: `CLIPModel` and both of its vision models.

Query, key and value are three matrices there. A file with texts is `CLIPModel`, one without is
`CLIPVisionModelWithProjection`, or `CLIPVisionModel` where it has no projection either; that one's
names have no `vision_model.` in front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from internvideo_jax.families.clip.weights import IMAGE
from internvideo_jax.layers.clip import NORM_EPS
from internvideo_jax.layers.tower import TowerConfig
from internvideo_jax.ops.pixels import CLIP_MEAN, CLIP_STD
from internvideo_jax.weights.family import Kind, named
from internvideo_jax.weights.hub_config import HubConfig, Stated
from internvideo_jax.weights.hub_processor import clip_processors
from internvideo_jax.weights.rules import LINEAR, Rule, Tensors, linear, norm

VISION, TEXT = "vision_model.", "text_model."
HEAD_WIDTH = 64  # channels of a head, in all published CLIPs
SCALE = "logit_scale"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModel:
    """A transformer of images, maybe with one of texts, whose weights only start models of ours.

    Attributes:
      name: kind of its weights.
      pixel_mean, pixel_std: of its normalisation; empty: not known.
      text: of its captions; None: it reads none. `context` and `vocab` are of these.
      embedding: channels of the projection; 0: none.
      classes: of its head; 0: none.
      norm_eps: of its layer norms; 0: that of all models of its kind.
    """

    name: str
    encoder: TowerConfig
    resolution: int
    patch: int
    pixel_mean: Sequence[float] = ()
    pixel_std: Sequence[float] = ()
    text: TowerConfig | None = None
    embedding: int = 0
    context: int = 0
    vocab: int = 0
    classes: int = 0
    norm_eps: float = 0.0
    activation: str = "gelu"
    qk_norm: bool = False
    qkv_bias: bool = False

    def pictures(self) -> dict[str, Any]:
        """The settings of its encoder as all configs of transformers call them."""
        return {
            **towers(self.encoder),
            "image_size": self.resolution,
            "patch_size": self.patch,
            "num_channels": 3,
        }


def towers(tower: TowerConfig) -> dict[str, int]:
    """Sizes of a stack as transformers calls them."""
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.hidden,
    }


def tower_of(config: HubConfig, width: int, depth: int, heads: int, hidden: int) -> dict[str, int]:
    """The same read back; the numbers are the defaults of transformers."""
    found = {
        "width": config.size("hidden_size", width),
        "depth": config.size("num_hidden_layers", depth),
        "heads": config.size("num_attention_heads", heads),
        "hidden": config.size("intermediate_size", hidden),
    }
    if found["width"] % found["heads"]:
        raise ValueError(
            f"{config.place}: num_attention_heads {found['heads']} do not divide hidden_size "
            f"{found['width']}"
        )
    return found


def image_model(kind: str, settings: Mapping[str, Any], **more: Any) -> ImageModel:
    """An `ImageModel` of plain settings."""
    fields = {field.name for field in dataclasses.fields(ImageModel)}
    values: dict[str, Any] = {
        name: value for name, value in {**settings, **more}.items() if name in fields
    }
    for name in ("encoder", "text"):
        if isinstance(values.get(name), Mapping):
            values[name] = TowerConfig(**values[name])
    return ImageModel(**{**values, "name": kind})


def guess_image(params: Tensors, patch: int, heads: int) -> dict[str, Any]:
    """Sizes of an image encoder from its weights, which have a table of class token and places."""
    depth, width = params["encoder/blocks/norm1/scale"].shape
    side = round((len(params["encoder/pos_embed/table"]) - 1) ** 0.5)
    hidden = params["encoder/blocks/mlp/fc1/kernel"].shape[2]
    return {
        "encoder": {"width": width, "depth": depth, "heads": heads, "hidden": hidden},
        "patch": patch,
        "resolution": side * patch,
    }


def heads_of(flag: str, tower: str, params: Tensors, given: Mapping[str, int], known: bool) -> int:
    """Heads that are given, else as many of HEAD_WIDTH as the published models have."""
    depth, width = params[f"{tower}/blocks/norm1/scale"].shape
    if found := given.get(flag, width // HEAD_WIDTH if known and not width % HEAD_WIDTH else 0):
        return found
    raise ValueError(
        f"the file does not tell the number of heads, and no published model is {width} wide with "
        f"{depth} layers; add --{flag}"
    )


def split_rules(theirs: Mapping[str, str], leaf: str, path: str) -> list[Rule]:
    """Matrices and biases of query, key and value, which are slices of one parameter here.

    Args:
      theirs: part -> what it is called.
      leaf: of the attention, such as `layers.{i}.self_attn.`.
    """
    names = [theirs[part] for part in "qkv"]
    return [
        *(
            Rule(f"{leaf}{name}.weight", path + "attn/qkv/kernel", LINEAR, part=part)
            for part, name in enumerate(names)
        ),
        *(
            Rule(f"{leaf}{name}.bias", path + "attn/qkv/bias", part=part)
            for part, name in enumerate(names)
        ),
    ]


QKV = {part: f"{part}_proj" for part in "qkv"}


def _block_rules(torch: str, p: str) -> list[Rule]:
    t = torch + "encoder.layers.{i}."
    return [
        *norm(t + "layer_norm1", p + "norm1"),
        *norm(t + "layer_norm2", p + "norm2"),
        *split_rules(QKV, t + "self_attn.", p),
        *linear(t + "self_attn.out_proj", p + "attn/proj"),
        *linear(t + "mlp.fc1", p + "mlp/fc1"),
        *linear(t + "mlp.fc2", p + "mlp/fc2"),
    ]


_VISION = (
    Rule(VISION + "embeddings.patch_embedding.weight", "encoder/patch_embed/kernel", IMAGE),
    Rule(VISION + "embeddings.class_embedding", "encoder/cls_token"),
    Rule(VISION + "embeddings.position_embedding.weight", "encoder/pos_embed/table"),
    Rule(VISION + "pre_layrnorm.weight", "encoder/norm_pre/scale"),  # so spelt there
    Rule(VISION + "pre_layrnorm.bias", "encoder/norm_pre/bias"),
    *_block_rules(VISION, "encoder/blocks/"),
    *norm(VISION + "post_layernorm", "encoder/norm_post"),
    Rule("visual_projection.weight", "encoder/proj/kernel", LINEAR),
)
RULES = {
    "clip": (
        *_VISION,
        Rule(TEXT + "embeddings.token_embedding.weight", "text/token_embed"),
        Rule(TEXT + "embeddings.position_embedding.weight", "text/pos_embed/table"),
        *_block_rules(TEXT, "text/blocks/"),
        *norm(TEXT + "final_layer_norm", "text/norm"),
        Rule("text_projection.weight", "text/proj/kernel", LINEAR),
        Rule(SCALE, SCALE),
    ),
    "clip_visual": _VISION,
}
_IDS = {r".*position_ids": "the numbers of positions, which older versions kept"}
IGNORED = {"clip": _IDS, "clip_visual": _IDS}
OPTIONAL = {"clip": (), "clip_visual": (r"encoder/proj/.*",)}


class CLIPOfTransformers:
    """See `internvideo_jax.weights.family.HuggingFace`."""

    names = named(RULES, IGNORED, OPTIONAL)
    recipes: Mapping[str, str] = {}  # none of them is a model by itself

    def full_names(self, names: Iterable[str]) -> dict[str, str]:
        """`CLIPVisionModel` alone has no `vision_model.` in front."""
        names = list(names)
        bare = "embeddings.patch_embedding.weight" in names
        return {name: VISION + name if bare else name for name in names}

    def geometry(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Patch size of a file in this layout."""
        return {"patch": tensors[VISION + "embeddings.patch_embedding.weight"].shape[-1]}

    def stated(self, kind: str, config: HubConfig) -> Stated:
        """See the protocol."""
        config.only("model_type", "", "clip", "clip_vision_model")
        whole = config.content["model_type"] == "clip"
        vision = config.part("vision_config") if whole else config
        settings: dict[str, Any] = {
            "encoder": tower_of(vision, 768, 12, 12, 3072),
            "resolution": vision.size("image_size", 224),
            "patch": vision.size("patch_size", 32),
        }
        vision.only("num_channels", 3, 3)
        remarks = _same_arithmetic(vision)
        if kind == "clip":
            text = config.part("text_config")
            remarks += _same_arithmetic(text)
            settings |= {
                "text": tower_of(text, 512, 12, 8, 2048),
                "context": text.size("max_position_embeddings", 77),
                "vocab": text.size("vocab_size", 49408),
            }
            # Both read the vector at the end of a caption, which is the largest id here; with
            # 2, an error of old configs, transformers looks for the largest, too.
            last = settings["vocab"] - 1
            text.only("eos_token_id", 49407, last, 2)
        return Stated(settings, remarks=remarks)

    def made(self, kind: str, settings: Mapping[str, Any], params: Tensors) -> ImageModel:
        """See the protocol."""
        projection = params.get("encoder/proj/kernel")
        return image_model(
            kind, settings, embedding=0 if projection is None else projection.shape[1]
        )

    def guess(
        self, kind: Kind, params: Tensors, geometry: Mapping[str, int], given: Mapping[str, int]
    ) -> dict[str, Any]:
        """See the protocol; heads have 64 channels in all published models, tables are square."""
        facts = kind.facts_of_params(params, geometry)
        known = bool(kind.size_of(facts))
        heads = heads_of("heads", "encoder", params, given, known)
        settings = guess_image(params, geometry["patch"], heads)
        settings |= {"pixel_mean": CLIP_MEAN, "pixel_std": CLIP_STD}
        if kind.name == "clip" and "text/token_embed" in params:
            depth, width = params["text/blocks/norm1/scale"].shape
            heads = heads_of("text_heads", "text", params, given, known)
            hidden = params["text/blocks/mlp/fc1/kernel"].shape[2]
            vocab = len(params["text/token_embed"])
            settings |= {
                "text": {"width": width, "depth": depth, "heads": heads, "hidden": hidden},
                "context": len(params["text/pos_embed/table"]),
                "vocab": vocab,
            }
        return settings

    def config_json(self, config: ImageModel, classes: Sequence[str] = ()) -> dict[str, Any]:
        """The content of `config.json` for this model."""
        arithmetic = {
            "hidden_act": "quick_gelu",
            "layer_norm_eps": NORM_EPS,
            "projection_dim": config.embedding or config.encoder.width,
        }
        vision = {"model_type": "clip_vision_model", **config.pictures(), **arithmetic}
        if config.name != "clip":
            architecture = "CLIPVisionModel" + ("WithProjection" if config.embedding else "")
            return {"architectures": [architecture], **vision, "dtype": "float32"}
        if config.text is None:
            raise ValueError(
                "this CLIP has no text half, which CLIPModel of transformers needs; export the "
                "image half cut out of it (kind clip_visual)"
            )
        text = {
            "model_type": "clip_text_model",
            **towers(config.text),
            "max_position_embeddings": config.context,
            "vocab_size": config.vocab,
            "bos_token_id": config.vocab - 2,  # as in CLIP's tokenizer
            "eos_token_id": config.vocab - 1,
            **arithmetic,
        }
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": config.embedding,
            "vision_config": vision,
            "text_config": text,
            "dtype": "float32",
        }

    def processors(self, config: ImageModel) -> dict[str, dict[str, Any]]:
        """See the protocol."""
        return clip_processors(config.resolution, config.pixel_mean, config.pixel_std)


def _same_arithmetic(config: HubConfig) -> tuple[str, ...]:
    config.only("hidden_act", "quick_gelu", "quick_gelu")
    return config.near("layer_norm_eps", NORM_EPS, NORM_EPS)
