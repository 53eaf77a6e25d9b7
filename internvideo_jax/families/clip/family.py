"""CLIP as the weight tools know it: initial weights, no model of its own."""

from __future__ import annotations

import dataclasses

from internvideo_jax.families.clip import weights
from internvideo_jax.families.clip.huggingface import CLIPOfTransformers
from internvideo_jax.families.clip.zoo import CLIP
from internvideo_jax.families.viclip.model import SIZES
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.family import Facts, Family, Kind, named, tower_facts

NAMES = named(weights.RULES, weights.IGNORED, weights.OPTIONAL)
SHAPES: dict[str, Facts] = {  # of its image transformers
    name: {
        **tower_facts(size.encoder),
        "patch": size.patch,
        "positions": 1 + (size.resolution // size.patch) ** 2,
    }
    for name, size in SIZES.items()
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CLIP(Kind):
    def facts_of_entry(self, entry: Entry) -> Facts:
        return {"kind": self.name, **SHAPES[entry.size]}


FAMILY = Family(
    title="CLIP",
    kinds=(
        _CLIP(
            name="clip",
            title="CLIP, image and text; initial weights for ViCLIP and UniFormerV2",
            names=NAMES["clip"],
            sizes=SHAPES,
        ),
        _CLIP(
            name="clip_visual",
            title="image half of CLIP; initial weights for ViCLIP and UniFormerV2",
            names=NAMES["clip_visual"],
            sizes=SHAPES,
        ),
        Kind(name="clip_frames", names=NAMES["clip_frames"]),
    ),
    geometry=weights.geometry,
    huggingface=CLIPOfTransformers(),
    sources={"clip": CLIP},
)
