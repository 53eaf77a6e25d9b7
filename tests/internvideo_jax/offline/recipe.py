"""A recipe with two tiny teachers; `cached`: without them, for targets that are there."""

from __future__ import annotations

import dataclasses

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.config import LogConfig, OptimConfig, TrainConfig
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.families.internvideo2.teacher import InternVLConfig
from internvideo_jax.families.videomae.teacher import VideoMAETeacherConfig
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.recipes.options import config_dict


def get_config(arg=""):
    objective = Alignment(
        clip_teacher=InternVLConfig.of_size("tiny"),
        mae_teacher=VideoMAETeacherConfig.of_size("tiny"),
    )
    student = StudentConfig.of_size("tiny", stride=2, frames=2, mae_width=32).smallest()
    objective, student = objective.smallest(student)
    if arg == "cached":
        objective = dataclasses.replace(objective, clip_teacher=None, mae_teacher=None)
    clip = ClipConfig(frames=student.clip_frames, stride=1, resolution=student.resolution)
    return config_dict(
        TrainConfig(
            model=student,
            objective=objective,
            data=DataConfig(global_batch=4, clip=clip),
            optim=OptimConfig(lr=1e-3, warmup_steps=1),
            log=LogConfig(every=1, report=False),
            steps=3,
        )
    )
