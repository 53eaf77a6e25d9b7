"""InternVideo2 stage 1: a student that sees a fifth of a clip, aligned with two frozen teachers.

    ivj train --config=configs/internvideo2/pretrain.py:size=1b \\
        --workdir=runs/stage1 --config.data.train=shards/ \\
        --config.objective.clip_teacher.init_from=internvl_c_13b_224px.pth \\
        --config.objective.mae_teacher.init_from=vit_g_hybrid_pt_1200e.pth

Options after the colon (comma separated):
  size      tiny | base | 1b | 6b; released are 1b and 6b, base takes the values of 1b
  targets   step: the teachers run in the train step
            cached: their features were computed before, see below
  teachers  of size=tiny: both | viclip, for what clips show | videomae, for what moves
  monitor   follow a nearest-neighbour accuracy during training (needs labels), and whether features
            collapse
  probes    end with a linear and an attentive probe on frozen features (needs labels)
  smoke     the recipe in small: three steps on any set, teachers with random weights, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts: rates for 256 clips, warm-up from nothing, 16 frames, one
random frame of each of 16 parts, of which InternVL-C reads every other one, VideoMAE V2 all, and
the student those of InternVL-C. InternVL-C's pooling says which patches are likely to stay visible;
the same number of every frame does. Six layers and the pooled vector follow InternVL-C, four layers
VideoMAE V2. Sets whose labels depend on left and right are not flipped (flip=auto).

With targets=cached, first compute the features of one fixed view per clip with the teachers,

    ivj teach --config=configs/internvideo2/pretrain.py:size=1b \\
        --config.data.train=shards/ --config.data.fixed_views=1 --out=shards/features

and the weights of the teachers as above, then train without them: `...:size=1b,targets=cached`.
`--config.data.fixed_views=N` in both keeps N views of each clip. What is published draws anew every
time; this is ours.

The reference takes the frame before each that it draws, and the last of the file in place of the
one before the first; that is not repeated. `size=tiny` is for the built-in world and CPUs: its
teachers are runs of configs/viclip/pretrain.py:size=tiny with 4 frames
(`--config.model.frames=4 --config.data.clip.frames=4`) and of configs/videomae/pretrain.py with
size=tiny.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from internvideo_jax.config import OptimConfig, TrainConfig
from internvideo_jax.families.clip.teacher import ViCLIPTeacherConfig
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.families.internvideo2.teacher import InternVLConfig
from internvideo_jax.families.videomae.teacher import VideoMAETeacherConfig
from internvideo_jax.layers.tower import last_layers
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.recipes.clips import clip_for
from internvideo_jax.recipes.distillation import (
    OPTIONS,
    TARGETS,
    chosen,
    released_run,
    student_clip,
    tiny_run,
)
from internvideo_jax.recipes.options import check_known, config_dict, parse_arg

CLIP_LAYERS, MAE_LAYERS = 6, 4  # that are aligned
OPTIM: dict[str, Any] = {"min_lr": 1e-5, "b2": 0.98, "eps": 1e-6, "clip_norm": 3.0}
STRIDE = 2  # of the student and the image teacher over the frames of the video teacher


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the released scripts."""

    batch: int  # clips per step
    drop_path: float
    videos: str  # what it was trained on
    remat: str = "full"
    like: str = ""  # no script was released: whose values these are


RECIPES = {
    "1b": Recipe(4096, 0.25, "K-Mash-1.1M"),
    "6b": Recipe(2048, 0.3, "K-Mash-2M"),
    "base": Recipe(4096, 0.25, "", remat="attention", like="1b"),
}
TEACHERS = ("both", "viclip", "videomae")


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(arg, size="1b", teachers="both", **OPTIONS)
    check_known(options, size=(*RECIPES, "tiny"), targets=TARGETS, teachers=TEACHERS)
    config = tiny(options) if options["size"] == "tiny" else released(options)
    return config_dict(chosen(config, options))


def released(options: dict[str, Any]) -> TrainConfig:
    """The recipe of a released script, by the size and the other options."""
    size: str = options["size"]
    recipe = RECIPES[size]
    clip_teacher = InternVLConfig.of_size("6b", frames=8)
    mae_teacher = VideoMAETeacherConfig.of_size("giant", frames=16)
    sized = StudentConfig.of_size(size)
    model = StudentConfig.of_size(
        size,
        stride=STRIDE,
        clip_width=clip_teacher.width,
        clip_layers=last_layers(sized.encoder.depth, CLIP_LAYERS),
        final_width=clip_teacher.final_width,
        mae_width=mae_teacher.width,
        mae_layers=last_layers(sized.encoder.depth, MAE_LAYERS),
        drop_path=recipe.drop_path,
        remat=recipe.remat,
    )
    return released_run(
        model,
        Alignment(mask_ratio=0.8, clip_teacher=clip_teacher, mae_teacher=mae_teacher),
        options,
        optim=OptimConfig(lr=1.5e-4, weight_decay=0.05, warmup_epochs=40, **OPTIM),
        batch=recipe.batch,
        epochs=301,
    )


def tiny(options: dict[str, Any]) -> TrainConfig:
    """48 pixels, 4 frames of a clip of 8, 0.6 M parameters, teachers of our own: minutes on CPUs.

    As in the published model the student has a token per frame, and the video teacher, which reads
    all frames in pairs, knows more of motion than any single token of the student can show. Half of
    the tokens are hidden, as 36 a frame hold less redundancy than 256; LayerScale starts at 0.1, so
    that a short run moves the features.
    """
    motion, looks = options["teachers"] != "viclip", options["teachers"] != "videomae"
    layers, form = last_layers(4, 2), {"resolution": 48, "dtype": "float32", "scan": False}
    clip_teacher = ViCLIPTeacherConfig.of_size("tiny", frames=4, layers=layers, **form)
    mae_teacher = VideoMAETeacherConfig.of_size(
        "tiny", frames=8, layers=layers, pos_table="separable", **form
    )
    model = StudentConfig.of_size(
        "tiny",
        frames=4,
        stride=STRIDE,
        clip_width=clip_teacher.width if looks else 0,
        clip_layers=layers if looks else (),
        final_width=clip_teacher.final_width if looks else 0,
        mae_width=mae_teacher.width if motion else 0,
        mae_layers=layers if motion else (),
        layer_scale=0.1,
        **form,
    )
    clip = dataclasses.replace(student_clip(model), stride=2, sampling="window")
    return tiny_run(
        model,
        Alignment(
            mask="attention" if looks else "random",
            mask_ratio=0.5,
            per_frame=clip_teacher.per_frame,
            middle=float(looks),
            final=float(looks),
            mae=float(motion),
            clip_teacher=clip_teacher if looks else None,
            mae_teacher=mae_teacher if motion else None,
        ),
        options,
        optim=OptimConfig(lr=1e-3, lr_batch=0, warmup_steps=100, **OPTIM),
        clip=clip,
        seen=clip_for(model, "dense", stride=4),
        steps=800,
    )
