"""InternVideo2 S, B and L, distilled from the 1B or 6B model.

    ivj train --config=configs/internvideo2/distill.py:size=base \\
        --workdir=runs/distill --config.data.train=shards/ \\
        --config.objective.clip_teacher.init_from=internvideo2_1b_s2.pt

Options after the colon (comma separated):
  size      tiny | small | base | large
  teacher   1b: the vision encoder of stage 2, as released | 1b_stage1 | 6b, of stage 1
  targets   step | cached, as in configs/internvideo2/pretrain.py
  monitor   follow a nearest-neighbour accuracy during training (needs labels), and whether features
            collapse
  probes    end with a linear and an attentive probe on frozen features (needs labels)
  smoke     the recipe in small: three steps on any set, a teacher with random weights, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts: rates for 256 clips, 8 frames, one random frame of each of
8 parts; the teacher's pooling says which patches of the whole clip are likely to stay visible, so
frames keep different numbers. The last six layers of the student follow every third or so of the
teacher's last seventeen, the pooled vector its pooled vector, each through an MLP.

The script for L names the small model; `size=large` is the large one. The released code leaves the
teacher in training mode, with drop path 0.25; here teachers are always as in evaluation.
`size=tiny` is for the built-in world and CPUs, its teacher a run of
configs/internvideo2/pretrain.py:size=tiny.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from internvideo_jax.config import OptimConfig, TrainConfig
from internvideo_jax.families.internvideo2.model import SIZES
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.families.internvideo2.teacher import InternVideo2TeacherConfig
from internvideo_jax.layers.tower import last_layers, tower
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.recipes.distillation import (
    OPTIONS,
    TARGETS,
    chosen,
    released_run,
    tiny_run,
)
from internvideo_jax.recipes.options import check_known, config_dict, parse_arg

LAYERS = 6  # that are aligned
INTERVAL = 3.34  # between those of the teacher
OPTIM: dict[str, Any] = {"lr": 1e-3, "min_lr": 1e-5, "b2": 0.98, "eps": 1e-6, "clip_norm": 5.0}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A published InternVideo2 that teaches, and what its file does not tell."""

    size: str
    pos_frames: int  # of the position table in its file


TEACHERS = {"1b": Teacher("1b", 4), "1b_stage1": Teacher("1b", 8), "6b": Teacher("6b", 8)}
BATCHES = {"small": 4096, "base": 4096, "large": 2048}  # clips per step


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(arg, size="base", teacher="1b", **OPTIONS)
    check_known(options, size=(*BATCHES, "tiny"), teacher=TEACHERS, targets=TARGETS)
    config = tiny(options) if options["size"] == "tiny" else released(options)
    return config_dict(chosen(config, options))


def released(options: dict[str, Any]) -> TrainConfig:
    """The recipe of a released script, by the size and the other options."""
    size, teacher = options["size"], TEACHERS[options["teacher"]]
    depth = SIZES[teacher.size]["encoder"].depth
    clip_teacher = InternVideo2TeacherConfig.of_size(
        teacher.size, pos_frames=teacher.pos_frames, layers=last_layers(depth, LAYERS, INTERVAL)
    )
    model = StudentConfig.of_size(
        size,
        clip_width=clip_teacher.width,
        clip_decoder="mlp",
        final_width=clip_teacher.final_width,
        drop_path=0.05,
        remat="attention",
    )
    return released_run(
        model,
        Alignment(mask_ratio=0.8, per_frame=False, mae=0.0, clip_teacher=clip_teacher),
        options,
        optim=OptimConfig(**OPTIM, weight_decay=0.05, warmup_epochs=20),
        batch=BATCHES[size],
        epochs=101,
    )


def tiny(options: dict[str, Any]) -> TrainConfig:
    """48 pixels, 8 frames, from a teacher of the same size: minutes on two CPU cores.

    The four layers of the teacher are all followed, by the four of a student half as wide.
    """
    form: dict[str, Any] = {"resolution": 48, "dtype": "float32", "scan": False}
    clip_teacher = InternVideo2TeacherConfig.of_size("tiny", layers=last_layers(4, 4), **form)
    model = StudentConfig.of_size(
        "tiny",
        encoder=tower(48, 4, 4),
        clip_width=clip_teacher.width,
        clip_layers=last_layers(4, 4),
        clip_decoder="mlp",
        final_width=clip_teacher.final_width,
        layer_scale=0.1,
        **form,
    )
    return tiny_run(
        model,
        Alignment(mask_ratio=0.5, per_frame=False, mae=0.0, clip_teacher=clip_teacher),
        options,
        optim=OptimConfig(**OPTIM, lr_batch=0, warmup_steps=100),
    )
