"""A recipe on a slice: the mesh that was compiled for it and found to fit.

    ivj train --config=configs/slices.py:preset=pretrain-large-v5e-16 \\
        --workdir=runs/pretrain --config.data.train=shards/

Presets are in PRESETS below; batch, rate and length stay those of the recipe. Each was compiled by
`ivj check` (docs/scale.md has what it printed), none has run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines import recipe_files
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.recipes.options import config_dict, parse_arg
from internvideo_jax.registry import suggest


@dataclasses.dataclass(frozen=True)
class Preset:
    """A recipe with the slice that it was planned for and its mesh there."""

    recipe: str  # file beside this one
    options: str  # of that file
    topology: str  # of compile_check
    data: int
    fsdp: int = 1
    tensor: int = 1


PRETRAIN, FINETUNE = "videomae/pretrain.py", "videomae/finetune.py"
UNIFORMER = "uniformerv2/finetune.py"
STAGE1 = "internvideo2/pretrain.py"
PRESETS = {
    "pretrain-large-v5e-16": Preset(PRETRAIN, "size=large", "v5e:4x4", data=16),
    "pretrain-giant-v5e-256": Preset(
        PRETRAIN, "size=giant,recipe=v2", "v5e:16x16", data=32, fsdp=8
    ),
    "finetune-base-v5e-64": Preset(FINETUNE, "size=base", "v5e:8x8", data=64),
    "finetune-giant-v5e-128": Preset(FINETUNE, "size=giant", "v5e:8x16", data=16, fsdp=8),
    "uniformerv2-base-v5e-16": Preset(UNIFORMER, "size=base", "v5e:4x4", data=16),
    "uniformerv2-large-v5e-32": Preset(UNIFORMER, "size=large", "v5e:4x8", data=32),
    # InternVideo2, stage 1, with the teachers in the step.
    "stage1-1b-v5e-256": Preset(STAGE1, "size=1b", "v5e:16x16", data=32, fsdp=8),
    "stage1-6b-v5e-256": Preset(STAGE1, "size=6b", "v5e:16x16", data=16, fsdp=16),
}


def get_config(arg: str = ""):
    """The recipe of a preset on its mesh; ValueError for a preset that there is not."""
    name = parse_arg(arg, preset="")["preset"]
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}: {suggest(name, PRESETS)}")
    preset = PRESETS[name]
    plain = recipe_files.load(f"{Path(__file__).parent / preset.recipe}:{preset.options}")
    config = to_typed(TrainConfig, plain)
    mesh = dataclasses.replace(
        config.mesh, data=preset.data, fsdp=preset.fsdp, tensor=preset.tensor
    )
    return config_dict(dataclasses.replace(config, mesh=mesh))
