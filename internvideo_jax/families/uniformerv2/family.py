"""UniFormerV2 as the weight tools know it, and its recipes for CLIP files, from which it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from internvideo_jax.families.uniformerv2 import weights
from internvideo_jax.families.uniformerv2.model import SIZES, UniFormerV2Config
from internvideo_jax.families.uniformerv2.zoo import UNIFORMERV2
from internvideo_jax.registry import resolve
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.family import NO_HEAD, Facts, Family, Kind, image_facts, named

NAMES = named(weights.RULES, weights.IGNORED, weights.OPTIONAL)
SHAPES = {
    name: image_facts(size.encoder, size.resolution, size.patch) for name, size in SIZES.items()
}
STARTS_FROM = ("clip", "clip_visual")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _UniFormerV2(Kind):
    def config_of(self, entry: Entry) -> Any:
        # The size name has the pixels.
        changes = {**entry.changes, "frames": entry.frames, "classes": entry.classes}
        return resolve("model", self.name).of_size(entry.size, **changes)

    def facts_of_config(self, config: UniFormerV2Config) -> Facts:
        facts = super().facts_of_config(config) | {
            "kernel_frames": config.kernel_frames,
            "positions": 1 + config.grid[1] * config.grid[2],
            "local_blocks": config.local_blocks,
            "global_blocks": len(config.global_layers),
            "frozen": config.frozen,
        }
        return facts | ({"classes": config.classes} if config.classes else {})

    def facts_of_params(self, params: Mapping[str, Any], geometry: Mapping[str, Any]) -> Facts:
        values = params["encoder/patch_embed/kernel"].shape[0]
        locals_ = [f"encoder/blocks/local{number}/reduce/kernel" in params for number in (1, 2)]
        return super().facts_of_params(params, geometry) | {
            "kernel_frames": values // (3 * geometry["patch"] ** 2),
            "local_blocks": sum(locals_),
            "frozen": "balance" not in params,
        }

    def shape(self, facts: Facts) -> list[str]:
        parts = ["frozen head" if facts["frozen"] else "head on query and class tokens"]
        parts.append(f"{facts['global_blocks']} global blocks")
        parts.append("local blocks" if facts["local_blocks"] else "no local blocks")
        if "positions" in facts:
            parts.append(f"{round((facts['positions'] - 1) ** 0.5) * facts['patch']} pixels")
        return parts

    def remarks(self, facts: Facts) -> list[str]:
        found = [] if "classes" in facts else [NO_HEAD]
        return [*found, "frames are not in the file, all have the same positions"]


def recipe(facts: Facts, size: str) -> str:
    """The recipe that starts from weights of these facts; "" where there is none."""
    start = facts["kind"] in STARTS_FROM and size in SIZES
    return f"configs/uniformerv2/finetune.py:data=kinetics,start=clip,size={size}" if start else ""


FAMILY = Family(
    title="UniFormerV2",
    kinds=(_UniFormerV2.of("uniformerv2", "UniFormerV2, fine-tuned (classifier)", NAMES, SHAPES),),
    geometry=weights.geometry,
    sources={"uniformerv2": UNIFORMERV2},
    recipe=recipe,
)
