"""CLIP as the weight tools know it: initial weights, no model of its own."""

from __future__ import annotations

import dataclasses

from internvideo_jax.families.clip import weights
from internvideo_jax.families.clip.huggingface import CLIPOfTransformers
from internvideo_jax.families.clip.zoo import CLIP
from internvideo_jax.families.viclip.model import SIZES
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.family import Facts, Family, Kind, image_facts, named

NAMES = named(weights.RULES, weights.IGNORED, weights.OPTIONAL)
STARTS = "initial weights for ViCLIP and UniFormerV2"
SHAPES: dict[str, Facts] = {  # of its image transformers
    name: image_facts(size.encoder, size.resolution, size.patch) for name, size in SIZES.items()
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CLIP(Kind):
    def facts_of_entry(self, entry: Entry) -> Facts:
        return {"kind": self.name, **SHAPES[entry.size]}


FAMILY = Family(
    title="CLIP",
    kinds=(
        _CLIP.of("clip", f"CLIP, image and text; {STARTS}", NAMES, SHAPES),
        _CLIP.of("clip_visual", f"image half of CLIP; {STARTS}", NAMES, SHAPES),
        Kind(name="clip_frames", names=NAMES["clip_frames"]),
    ),
    geometry=weights.geometry,
    huggingface=CLIPOfTransformers(),
    sources={"clip": CLIP},
)
