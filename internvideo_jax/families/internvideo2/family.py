"""InternVideo2 (single modality) and its teacher InternVL as the weight tools know them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from internvideo_jax.families.internvideo2 import internvl_weights as internvl
from internvideo_jax.families.internvideo2 import weights
from internvideo_jax.families.internvideo2.classifier import InternVideo2ClassifierConfig
from internvideo_jax.families.internvideo2.huggingface import InternVLOfTransformers
from internvideo_jax.families.internvideo2.model import SIZES, EncoderConfig
from internvideo_jax.families.internvideo2.weights import BACKBONE, CLASSIFIER, STUDENT
from internvideo_jax.families.internvideo2.zoo import FINETUNE, INTERNVIDEO2
from internvideo_jax.weights.family import NO_HEAD, Facts, Family, Kind, named, tower_facts

# Sizes in the names of recipes, and datasets by number of classes.
LETTERS = {"small": "s", "base": "b", "large": "l", "1b": "1b", "6b": "6b"}
BY_CLASSES = {400: "k400", 600: "k600", 700: "k700", 710: "k710", 174: "ssv2", 339: "mit"}
PIXELS, TIME_STEPS = 224, 8  # of published position tables; stage 2 has 4 time steps
NAMES = named(weights.RULES, weights.IGNORED, weights.OPTIONAL)
SHAPES: dict[str, Facts] = {
    name: {**tower_facts(size["encoder"]), "patch": size.get("patch", 14)}
    for name, size in SIZES.items()
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _InternVideo2(Kind):
    """Time steps of the position table, where it is of 224 pixels, and what the head reads."""

    remark: str = ""

    def facts_of_config(self, config: EncoderConfig) -> Facts:
        facts = super().facts_of_config(config) | {"tubelet": config.tubelet}
        return facts | ({"positions": 1 + config.tokens} if config.pos_table == "joint" else {})

    def facts_of_params(self, params: Mapping[str, Any], geometry: Mapping[str, Any]) -> Facts:
        facts = super().facts_of_params(params, geometry)
        joint, temporal = (
            params.get(f"encoder/pos_embed/{leaf}") for leaf in ("table", "temporal")
        )
        places = (PIXELS // geometry["patch"]) ** 2
        if temporal is not None:
            facts["time_steps"] = temporal.shape[0]
        elif joint is not None and (joint.shape[0] - 1) % places == 0:
            facts["time_steps"] = (joint.shape[0] - 1) // places
        return facts

    def remarks(self, facts: Facts) -> list[str]:
        found = []
        if "time_steps" in facts:
            found.append(
                f"frames and pixels are not in the file; its positions fit {facts['time_steps']} "
                f"time steps of {PIXELS} pixels"
            )
        return [*found, self.remark] if self.remark else found

    def settings(self, facts: Facts) -> tuple[str, ...]:
        if facts.get("time_steps", TIME_STEPS) == TIME_STEPS:
            return ()
        return (f"--config.model.pos_frames={facts['time_steps']}",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Classifier(_InternVideo2):
    def facts_of_config(self, config: InternVideo2ClassifierConfig) -> Facts:
        facts = super().facts_of_config(config)
        return facts | ({"classes": config.classes} if config.classes else {})

    def facts_of_params(self, params: Mapping[str, Any], geometry: Mapping[str, Any]) -> Facts:
        facts = super().facts_of_params(params, geometry)
        if "extra_mlp/fc1/kernel" in params:
            facts["probe"] = "attentive"
        elif "down/kernel" in params:
            facts["probe"] = "linear"
        elif "down_norm/scale" in params or "down_norm/mean" in params:
            facts["probe"] = "other"
        return facts

    def remarks(self, facts: Facts) -> list[str]:
        found = [*([] if "classes" in facts else [NO_HEAD]), *super().remarks(facts)]
        if facts.get("classes") == 174:
            found.append("174 classes: Something-Something, version 1 or 2")
        return found


def recipe(facts: Facts, size: str) -> str:
    """That of the head and number of classes; Kinetics-710 where the file has no head."""
    if facts["kind"] not in NAMES or size not in LETTERS:
        return ""
    letter, probe = LETTERS[size], facts.get("probe")
    large = size in ("1b", "6b")
    if probe:
        found = large and probe in ("attentive", "linear")
        return f"configs/internvideo2/probe.py:recipe={probe}/{letter}_ssv2" if found else ""
    data = BY_CLASSES.get(facts.get("classes", 710), "k400")
    if data == "mit" and not large:
        data = "k400"
    return f"{FINETUNE}{letter}_{data}"


# Between two models a mean of the tables of frames is left out.
_KEPT = ("encoder/pos_embed/temporal",)
FAMILY = Family(
    title="InternVideo2",
    kinds=(
        _InternVideo2.of(
            BACKBONE, "InternVideo2, video encoder and attention pool", NAMES, SHAPES, kept=_KEPT
        ),
        _InternVideo2.of(
            STUDENT,
            "InternVideo2, student of stage 1 or of a distillation",
            NAMES,
            SHAPES,
            kept=_KEPT,
            remark="a classifier takes encoder and pool; decoders and their tables stay behind",
        ),
        _Classifier.of(
            CLASSIFIER, "InternVideo2, fine-tuned or probed (classifier)", NAMES, SHAPES, kept=_KEPT
        ),
        Kind(
            name=internvl.KIND,
            names=named(internvl.RULES, internvl.IGNORED, internvl.OPTIONAL)[internvl.KIND],
        ),
    ),
    geometry=weights.geometry,
    huggingface=InternVLOfTransformers(),
    sources={"internvideo2": INTERNVIDEO2},
    short_names=weights.short_names,
    recipe=recipe,
)
