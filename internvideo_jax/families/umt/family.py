"""Unmasked Teacher as the weight tools know it; its classifiers are VideoMAE's of tubelet 1."""

from __future__ import annotations

import dataclasses

from internvideo_jax.families.umt import weights
from internvideo_jax.families.umt.model import UMTStudentConfig
from internvideo_jax.families.umt.zoo import FINETUNE, UMT
from internvideo_jax.families.videomae.family import SHAPES
from internvideo_jax.weights.family import Facts, Family, Kind, named

LETTERS = {"base": "b", "large": "l"}  # of its sizes in the names of recipes
TAKES = (weights.KIND, "videomae_pretrain", "videomae_classifier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Student(Kind):
    def facts_of_config(self, config: UMTStudentConfig) -> Facts:
        return super().facts_of_config(config) | {"tubelet": config.tubelet}

    def remarks(self, facts: Facts) -> list[str]:
        return ["a classifier takes the encoder; decoders and last norm stay behind"]


def recipe(facts: Facts, size: str) -> str:
    """The fine-tuning recipe for weights of these facts; "" where there is none."""
    mine = facts["kind"] in TAKES and facts.get("tubelet") == 1 and size in LETTERS
    return f"{FINETUNE}{LETTERS[size]}_k710" if mine else ""


FAMILY = Family(
    title="Unmasked Teacher",
    kinds=(
        _Student(
            name=weights.KIND,
            title="Unmasked Teacher, pre-training (encoder and decoders)",
            names=named(weights.RULES, weights.IGNORED, weights.OPTIONAL)[weights.KIND],
            sizes=SHAPES,
        ),
    ),
    geometry=weights.geometry,
    sources={"umt": UMT},
    recipe=recipe,
)
