"""Unmasked Teacher: a student that sees a fifth of a clip, aligned with CLIP's image transformer.

    ivj train --config=configs/umt/pretrain.py:size=base \\
        --workdir=runs/umt --config.data.train=shards/ \\
        --config.objective.clip_teacher.init_from=clip_b16.pth

Options after the colon (comma separated):
  size      tiny | base | large
  targets   step: the teacher runs in the train step | cached: its features were computed before,
            as in configs/internvideo2/pretrain.py
  monitor   follow a nearest-neighbour accuracy during training (needs labels), and whether features
            collapse
  probes    end with a linear and an attentive probe on frozen features (needs labels)
  smoke     the recipe in small: three steps on any set, a teacher with random weights, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts, for Kinetics-710: rates for 256 clips, warm-up from
nothing, 8 frames, one random frame of each of 8 parts, no clipping. The teacher reads frames apart,
base CLIP's B/16 and large its L/14, for which frames are resized to 196 pixels, so that both have
14 x 14 patches. The last six layers of the student follow the teacher's last six, each after
CLIP's last norm and projection; the attention of its class token says which patches are likely to
stay visible, 40 of every frame. Sets whose labels depend on left and right are not flipped
(flip=auto). `size=tiny` is for the built-in world and CPUs; its teacher is a run of
configs/viclip/pretrain.py:size=tiny, frame by frame.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from internvideo_jax.config import OptimConfig, TrainConfig
from internvideo_jax.families.clip.teacher import CLIPTeacherConfig
from internvideo_jax.families.umt.model import UMTStudentConfig
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.recipes.distillation import (
    OPTIONS,
    TARGETS,
    chosen,
    released_run,
    tiny_run,
)
from internvideo_jax.recipes.options import check_known, config_dict, parse_arg


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the released scripts."""

    teacher: str  # size of CLIP
    drop_path: float


RECIPES = {"base": Recipe("base16", 0.1), "large": Recipe("large14", 0.2)}


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(arg, size="base", **OPTIONS)
    check_known(options, size=(*RECIPES, "tiny"), targets=TARGETS)
    config = tiny(options) if options["size"] == "tiny" else released(options)
    return config_dict(chosen(config, options))


def released(options: dict[str, Any]) -> TrainConfig:
    """The recipe of a released script, by the size and the other options."""
    recipe = RECIPES[options["size"]]
    teacher = CLIPTeacherConfig.of_size(recipe.teacher)
    model = UMTStudentConfig.of_size(
        options["size"],
        clip_width=teacher.width,
        drop_path=recipe.drop_path,
        remat="attention",
    )
    return released_run(
        model,
        alignment(0.8, teacher),
        options,
        optim=OptimConfig(lr=1.5e-4, min_lr=1e-5, warmup_epochs=40),
        batch=2048,
        epochs=201,
    )


def alignment(mask_ratio: float, teacher: CLIPTeacherConfig) -> Alignment:
    """The objective: layers alone are compared, there is neither a vector nor a second teacher."""
    return Alignment(mask_ratio=mask_ratio, final=0.0, mae=0.0, clip_teacher=teacher)


def tiny(options: dict[str, Any]) -> TrainConfig:
    """48 pixels, 8 frames, 0.6 M parameters, a teacher of our own: minutes on two CPU cores."""
    layers = (2, 3)
    teacher = CLIPTeacherConfig.of_size("tiny", layers=layers, dtype="float32", scan=False)
    model = UMTStudentConfig.of_size(
        "tiny",
        resolution=48,
        clip_width=teacher.width,
        clip_layers=layers,
        pos_table="separable",
        dtype="float32",
        scan=False,
    )
    optim = OptimConfig(lr=1e-3, min_lr=1e-5, lr_batch=0, warmup_steps=100, clip_norm=1.0)
    return tiny_run(model, alignment(0.5, teacher), options, optim=optim)
