"""Which parameters are decayed, family by family, against the references' rules on torch names."""

from __future__ import annotations

import re

import numpy as np
import pytest

from internvideo_jax.config import OptimConfig
from internvideo_jax.families.internvideo2 import weights as internvideo2
from internvideo_jax.families.internvideo2.classifier import (
    InternVideo2ClassifierConfig as InternVideo2Classifier,
)
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.families.umt import weights as umt
from internvideo_jax.families.umt.model import UMTStudentConfig
from internvideo_jax.families.uniformerv2 import weights as uniformerv2
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.viclip import weights as viclip
from internvideo_jax.families.viclip.model import ViCLIPConfig
from internvideo_jax.families.videomae import weights as videomae
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.optim.factory import decay_mask, make_optimizer
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights.rules import to_torch
from tests.recipes import shipped


def listed(*names: str):
    """Not decayed: 1-D, `.bias`, and what the model lists by its full name."""
    return lambda name, rank: rank == 1 or name.endswith(".bias") or name in names


def videomae_v2(name: str, rank: int) -> bool:
    """The same, and the scale of cosine attention, (heads, 1, 1)."""
    skipped = listed("pos_embed", "cls_token", "mask_token")
    return skipped(name, rank) or name.endswith(".scale")


def slowfast(name: str, rank: int) -> bool:
    """UniFormerV2: 1-D parameters alone; batch norms are such."""
    return rank == 1


FORMS = ("", "_spatial", "_temporal", "_cls")
INTERNVIDEO2 = listed(
    "cls_token", *(f"{table}pos_embed{form}" for table in ("", "clip_", "mae_") for form in FORMS)
)
# The text encoder lists `token_embedding`, which is the name of a module and of no parameter.
VICLIP = listed(
    "temp",
    *(f"vision_encoder.{name}" for name in ("positional_embedding", "class_embedding")),
    "vision_encoder.temporal_positional_embedding",
    *(f"text_encoder.{name}" for name in ("token_embedding", "positional_embedding")),
)
SMALL = {"frames": 4, "resolution": 16, "patch": 8, "dtype": "float32"}
VIDEOMAE = {"layer_scale": 0.1, "cosine": True, **SMALL}
STUDENT = {"mae_width": 32, "clip_width": 48, "final_width": 24, **SMALL}
BIASED = {"qkv_bias": True, "pos_table": "separable"}

# Family, model, rules of its torch names, the reference's rule, the recipe whose optimizer decays.
FAMILIES = {
    "videomae_pretrain": (
        PretrainConfig.of_size("tiny", decoder_depth=2, **VIDEOMAE),
        videomae.PRETRAIN,
        videomae_v2,
        "videomae-pretrain-v2-base",
    ),
    "videomae_classifier": (
        VideoMAEClassifierConfig.of_size("tiny", classes=3, pos_table="learnable", **VIDEOMAE),
        videomae.FINETUNE,
        videomae_v2,
        "videomae-finetune-v2-b_k400",
    ),
    "videomae_first_token": (
        VideoMAEClassifierConfig.of_size("tiny", classes=3, pooling="first_token", **SMALL),
        videomae.FINETUNE,
        videomae_v2,
        "videomae-finetune-v2-b_k400",
    ),
    "umt_student": (
        UMTStudentConfig.of_size("tiny", pos_table="learnable", **SMALL),
        umt.RULES["umt_student"],
        listed("encoder.pos_embed", "clip_pos_embed", "cls_token"),
        "umt-pretrain-base",
    ),
    "internvideo2_student": (
        StudentConfig.of_size("tiny", **STUDENT),
        internvideo2.RULES["internvideo2_student"],
        INTERNVIDEO2,
        "internvideo2-pretrain-1b",
    ),
    "internvideo2_distilled": (
        StudentConfig.of_size("tiny", clip_decoder="mlp", **{**STUDENT, **BIASED}),
        internvideo2.RULES["internvideo2_student"],
        INTERNVIDEO2,
        "internvideo2-distill-base",
    ),
    "internvideo2_classifier": (
        InternVideo2Classifier.of_size("tiny", classes=3, **SMALL),
        internvideo2.RULES["internvideo2_classifier"],
        INTERNVIDEO2,
        "internvideo2-finetune-1b_k400",
    ),
    "internvideo2_extra_mlp": (
        InternVideo2Classifier.of_size("tiny", classes=3, extra_mlp=True, **{**SMALL, **BIASED}),
        internvideo2.RULES["internvideo2_classifier"],
        INTERNVIDEO2,
        "internvideo2-probe-attentive-1b_ssv2",
    ),
    "internvideo2_merged": (
        InternVideo2Classifier.of_size("tiny", classes=3, merge="cls_avgN_proj", **SMALL),
        internvideo2.RULES["internvideo2_classifier"],
        INTERNVIDEO2,
        "internvideo2-probe-linear-1b_ssv2",
    ),
    "uniformerv2_kinetics": (
        UniFormerV2Config.of_size("tiny", classes=3),
        uniformerv2.UNIFORMERV2,
        slowfast,
        "uniformerv2-kinetics-clip-base",
    ),
    "uniformerv2_something": (
        UniFormerV2Config.of_size("tiny", style="something", classes=3),
        uniformerv2.UNIFORMERV2,
        slowfast,
        "uniformerv2-something-clip-base",
    ),
    "viclip_frozen_text": (
        ViCLIPConfig.of_size("tiny", vocab=99, **SMALL),
        viclip.RULES["viclip"],
        VICLIP,
        "size=base",
    ),
    "viclip": (
        ViCLIPConfig.of_size("tiny", vocab=99, **SMALL),
        viclip.RULES["viclip"],
        VICLIP,
        "size=base,text=trained",
    ),
    "viclip_tiny": (
        ViCLIPConfig.of_size("tiny", vocab=99, **SMALL),
        viclip.RULES["viclip"],
        VICLIP,
        "size=tiny",
    ),
}


def optim_of(recipe: str) -> OptimConfig:
    if not recipe.startswith("size="):
        return shipped.config(recipe).optim
    plain = shipped.module("viclip/pretrain.py").get_config(recipe).optim.to_dict()
    return OptimConfig(**plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_decays_is_what_the_reference_decays(family):
    config, rules, spared, recipe = FAMILIES[family]
    optim, shapes = optim_of(recipe), config.model().shapes()
    flat = flatten_paths(shapes)
    also = {path for path in flat if any(re.search(each, path) for each in optim.decay_also)}
    mask = flatten_paths(decay_mask(shapes, also))
    geometry = {"patch": config.patch, "tubelet": getattr(config, "kernel_frames", config.tubelet)}
    # As 0 and 1 through the exporter: one path may be several tensors, and one tensor of many.
    exported = to_torch(
        {path: np.full(leaf.shape, mask[path]) for path, leaf in flat.items()}, rules, geometry
    )
    frozen = make_optimizer(optim, shapes, lambda step: 0.1).frozen
    still = {*to_torch({path: np.zeros(flat[path].shape) for path in frozen}, rules, geometry)}
    wrong = {}
    for name, tensor in exported.items():
        if name in still or name.endswith(("running_mean", "running_var")):
            continue  # without an update there is no decay either
        assert tensor.all() or not tensor.any(), name
        if bool(tensor.all()) == spared(name, tensor.ndim):
            wrong[name] = bool(tensor.all())
    assert not wrong
    assert len(exported) > len(still)


def test_a_trained_text_encoder_has_its_tokens_decayed():
    """The list of the reference names the module, so that nothing takes its weight out."""
    name = "text_encoder.token_embedding.weight"
    assert not VICLIP(name, 2) and VICLIP("text_encoder.positional_embedding", 2)
    assert optim_of("size=base,text=trained").decay_also == ("^text/token_embed$",)
    assert optim_of("size=large,stage=2,text=trained").decay_also == ("^text/token_embed$",)
    assert optim_of("size=base").decay_also == ()
    shapes = ViCLIPConfig.of_size("tiny", vocab=99, **SMALL).model().shapes()
    optimizer = make_optimizer(optim_of("size=base,text=trained"), shapes, lambda step: 0.1)
    assert optimizer.frozen == frozenset()
