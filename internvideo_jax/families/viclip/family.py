"""ViCLIP as the weight tools know it."""

from __future__ import annotations

import dataclasses

from internvideo_jax.families.clip.family import SHAPES
from internvideo_jax.families.viclip import weights
from internvideo_jax.families.viclip.model import FRAMES, SIZES, TEXT, ViCLIPConfig
from internvideo_jax.families.viclip.zoo import PRETRAIN, VICLIP
from internvideo_jax.ops.position_tables import resize_length
from internvideo_jax.weights.family import Facts, Family, Kind, named
from internvideo_jax.weights.rules import Tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ViCLIP(Kind):
    def facts_of_config(self, config: ViCLIPConfig) -> Facts:
        positions = 1 + config.grid[1] * config.grid[2]
        return super().facts_of_config(config) | {"positions": positions}

    def can_be_evaluated(self, facts: Facts) -> bool:
        return True  # against captions; there is no head


def recipe(facts: Facts, size: str) -> str:
    """The pre-training recipe of this size; "" where there is none."""
    return f"{PRETRAIN}size={size}" if facts["kind"] == "viclip" and size in SIZES else ""


def clip_for_mean(first: Tensors, other: Tensors) -> Tensors:
    """The CLIP that a ViCLIP started from, its text positions cut to the first's length."""
    if TEXT not in other or TEXT not in first:
        return other
    return {**other, TEXT: resize_length(other[TEXT], len(first[TEXT]), longer="zero")}


FAMILY = Family(
    title="ViCLIP",
    kinds=(
        _ViCLIP(
            name="viclip",
            title="ViCLIP (video and text encoder)",
            names=named(weights.RULES, weights.IGNORED, weights.OPTIONAL)["viclip"],
            sizes=SHAPES,
            # The frames' table is zero in CLIP, where a mean would only halve it.
            kept=(FRAMES,),
            starts={"clip": clip_for_mean},
        ),
    ),
    geometry=weights.geometry,
    sources={"viclip": VICLIP},
    recipe=recipe,
)
