"""VideoMAE, VideoMAE V2 and InternVideo1's VideoMAE as the weight tools know them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from internvideo_jax.families.videomae import weights
from internvideo_jax.families.videomae.huggingface import VideoMAEOfTransformers
from internvideo_jax.families.videomae.model import SIZES, PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.families.videomae.zoo import INTERNVIDEO1, V2, VIDEOMAE
from internvideo_jax.weights.family import NO_HEAD, Facts, Family, Kind, named, tower_facts

DEFAULT_SIZES = ("small", "base", "large", "huge", "giant")  # of the fine-tuning recipes
NAMES = named(weights.RULES, weights.IGNORED, weights.OPTIONAL)
SHAPES: dict[str, Facts] = {
    name: {**tower_facts(size.encoder), "patch": size.patch, "decoder_width": size.decoder_width}
    for name, size in SIZES.items()
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pretrain(Kind):
    def facts_of_config(self, config: PretrainConfig) -> Facts:
        decoder = {"decoder_width": config.decoder.width, "decoder_depth": config.decoder.depth}
        return super().facts_of_config(config) | {"tubelet": config.tubelet} | decoder

    def remarks(self, facts: Facts) -> list[str]:
        if "decoder_width" in facts:
            return []
        return ["no decoder: enough to fine-tune, not to go on with pre-training"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Classifier(Kind):
    def facts_of_config(self, config: VideoMAEClassifierConfig) -> Facts:
        facts = super().facts_of_config(config)
        facts |= {"tubelet": config.tubelet, "pooling": config.pooling}
        return facts | ({"classes": config.classes} if config.classes else {})

    def facts_of_params(self, params: Mapping[str, Any], geometry: Mapping[str, Any]) -> Facts:
        facts = super().facts_of_params(params, geometry)
        for pooling, path in (("mean", "fc_norm/scale"), ("first_token", "encoder/norm/scale")):
            if path in params:
                facts["pooling"] = pooling
        return facts

    def remarks(self, facts: Facts) -> list[str]:
        found = [] if "classes" in facts else [NO_HEAD]
        if "positions" not in facts:
            found.append("frames and pixels are not in the file, its positions are computed")
        return found


def recipe(facts: Facts, size: str) -> str:
    """The fine-tuning recipe for weights of these facts; "" where there is none."""
    name = size.partition("_")[0]
    mine = facts["kind"] in NAMES and name in DEFAULT_SIZES
    return f"configs/videomae/finetune.py:size={name}" if mine else ""


FAMILY = Family(
    title="VideoMAE",
    kinds=(
        _Pretrain.of(
            "videomae_pretrain", "VideoMAE, pre-training (encoder and decoder)", NAMES, SHAPES
        ),
        _Classifier.of("videomae_classifier", "VideoMAE, fine-tuned (classifier)", NAMES, SHAPES),
    ),
    geometry=weights.geometry,
    sources={"videomae": VIDEOMAE, "v2": V2, "internvideo1": INTERNVIDEO1},
    huggingface=VideoMAEOfTransformers(),
    recipe=recipe,
)
