"""What weights were made for, and why they do not fit another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from internvideo_jax.protocols import ModelConfig, clip_of

TOWERS = ("encoder", "decoder")
# Fields of config.model that decide what a weight means -> why nothing is done about another value.
WHY = {
    "patch": "the patch embedding has a weight for every pixel of a patch and is not resized",
    "tubelet": "the patch embedding has weights for every frame of a tubelet and is not resized",
    "width": "matrices are not resized",
    "hidden": "matrices are not resized",
    "depth": "layers are neither left out nor made up",
    "heads": "other heads would be made of the same columns",
}


def settings_of(
    params: Mapping[str, np.ndarray], stated: Mapping[str, Any], config: ModelConfig
) -> dict[str, int]:
    """Fields of config.model that the weights were made with, as far as that is known.

    Args:
      params: by path.
      stated: what the run or the weight file says about its model.
      config: the config of the model that shall take them; tells how tokens relate to pixels.

    Returns:
      `patch`, `tubelet`, `frames`, `resolution`, `encoder.width` and the like.
    """
    found: dict[str, int] = {}
    for tower in TOWERS:
        scale, hidden = (
            params.get(f"{tower}/blocks/{leaf}") for leaf in ("norm1/scale", "mlp/fc1/bias")
        )
        if scale is not None and scale.ndim == 2:
            found[f"{tower}.depth"], found[f"{tower}.width"] = scale.shape
        if hidden is not None and hidden.ndim == 2:
            found[f"{tower}.hidden"] = hidden.shape[1]
        fields = stated.get(tower)
        if isinstance(fields, Mapping):
            found.update({f"{tower}.{name}": value for name, value in fields.items()})
    for name in ("patch", "tubelet", "frames", "resolution"):
        if name in stated:
            found[name] = int(stated[name])
    table = params.get("encoder/pos_embed/table")
    # Of a class token and one frame; a table of all frames does not tell the resolution.
    if table is not None and not config.traits.clip_tables:
        side = round((len(table) - 1) ** 0.5)
        if side * side == len(table) - 1:
            found.setdefault("resolution", side * found.get("patch", clip_of(config).patch))
    return found


def differing_fields(found: Mapping[str, int], config: ModelConfig) -> list[str]:
    """A line for every field of WHY that says something else in the config."""
    adaptation = config.traits.adaptation
    model = adaptation.of if adaptation and adaptation.of else config
    clip = model.inputs.clip
    ours = {"": {"patch": clip.patch, "tubelet": clip.tubelet}} if clip else {}
    ours |= {name: vars(stack) for name, stack in model.traits.stacks.items()}
    lines = []
    for name, value in found.items():
        tower, _, field = name.rpartition(".")
        here = ours.get(tower, {}).get(field)
        if field in WHY and here is not None and here != value:
            lines.append(f"  {name} {value} there, config.model.{name} = {here}: {WHY[field]}")
    return lines
