"""A recipe in small: everything it switches on, in a run of seconds.

    ivj train --config=configs/videomae/finetune.py:recipe=v2/g_k710,smoke \\
        --workdir=/tmp/smoke --config.data.train=shards/

Sampling, augmentation, objective, optimizer, test views and schedule are those of the recipe; the
model and its teachers, whose weights are random, have two thin layers, the batch four clips, the
run three steps with a checkpoint after the second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.config import ClipConfig, ImageConfig
from internvideo_jax.config import CheckpointConfig, LogConfig, TrainConfig
from internvideo_jax.tasks import Evaluator

CLIPS = 4  # per step and repeat


def sized(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """The run with the options `smoke` and `small` of its recipe.

    Raises:
      ValueError: both.
    """
    if options["smoke"] and options["small"]:
        raise ValueError("smoke and small exclude each other: smoke has a batch and a length")
    if options["small"]:
        data = dataclasses.replace(config.data, global_batch=0)  # internvideo_jax/run/small.py
        return dataclasses.replace(config, data=data)
    return smoke(config) if options["smoke"] else config


def smoke(config: TrainConfig) -> TrainConfig:
    """The config with the smallest model of its kind, a tiny batch and three steps."""
    # Teachers and the student must fit each other.
    objective, model = config.objective.smallest(config.model.smallest())

    takes = model.inputs.clip

    def small(clip: ClipConfig, stride: int = 1) -> ClipConfig:
        """What the model looks at; of a training step `stride` times as many frames."""
        if takes is None:  # no pixels
            return clip
        # Short strides, so that clips of the built-in world are long enough for every rule.
        return dataclasses.replace(
            clip,
            frames=takes.frames * stride,
            resolution=takes.resolution,
            stride=min(clip.stride, 2),
        )

    def small_pass(evaluator: Evaluator) -> Evaluator:
        views = evaluator.views
        views = dataclasses.replace(views, clip=small(views.clip), batch=CLIPS)
        return dataclasses.replace(evaluator, views=views)

    data, optim = config.data, config.optim
    augment = data.augment
    if takes is not None:
        augment = dataclasses.replace(augment, short_side=(takes.resolution, takes.resolution + 8))
    return dataclasses.replace(
        config,
        model=model,
        objective=objective,
        data=dataclasses.replace(
            data,
            clip=small(data.clip, 1 if takes is None else takes.stride),
            image=ImageConfig(),  # those of the videos
            global_batch=CLIPS * data.repeats * optim.accumulate,
            augment=augment,
        ),
        optim=dataclasses.replace(optim, warmup_steps=1, warmup_epochs=0.0),
        checkpoint=CheckpointConfig(every=2),
        log=LogConfig(every=1, report=False),
        init_whole=(),  # it stands alone: no stage before it has a model of this size
        evals={label: small_pass(evaluator) for label, evaluator in config.evals.items()},
        steps=3,
        epochs=0.0,
    )
