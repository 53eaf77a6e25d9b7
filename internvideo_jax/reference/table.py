"""What the reference runs are: a recipe in small on the built-in world, each field described.

Each has the smallest model of its kind and the settings of a released script, apart from what is
written here. Lengths and rates are such that something is learned within seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.synthetic import World

# The clips that all of them train on, and the column of the built-in world that is their label:
# what a short run learns. Masked pixels, teachers and captions read none.
WORLD, TRAIN, TEST = World(size=48, frames=20), 96, 32
LABEL = "colour"
SEEDS, STEPS = (0, 1, 2), 60
# Of all references; they are evaluated in the middle and at the end.
SHARED: Mapping[str, Any] = {
    "optim.lr": 2e-3,
    "log.every": 1,
    "log.report": False,
    "optim.lr_batch": 0,
    "optim.min_lr": 1e-5,
    "optim.warmup_steps": 5,
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """One of them.

    Attributes:
      recipe: with its options.
      settings: fields that differ from the recipe, beside SHARED.
      evaluator: of the recipe, that is run; the others are left out.
      metric: of this evaluator, compared.
      margin: half the width of its band, at least; of a share of a few clips, what some clips are.
    """

    recipe: str
    settings: Mapping[str, Any]
    evaluator: str
    metric: str
    margin: float = 0.0


REFERENCES: Mapping[str, Reference] = {
    "videomae-pretrain": Reference(
        "videomae/pretrain:size=base,smoke",
        {"data.global_batch": 8, "objective.normalized": False},
        "reconstruction",
        "loss",
    ),
    "videomae-finetune": Reference(
        "videomae/finetune:recipe=videomae/b_k400_800e,smoke",
        {
            "optim.layer_decay": 1.0,
            "objective.mixup": 0.0,
            "objective.cutmix": 0.0,
            "data.global_batch": 16,
        },
        "test",
        "top1",
        0.25,
    ),
    "uniformerv2-finetune": Reference(
        "uniformerv2/finetune:size=base,smoke",
        {"data.global_batch": 16},
        "test",
        "top1",
        0.25,
    ),
    "viclip-pretrain": Reference(
        "viclip/pretrain:size=base,tokenizer=world,text=trained,smoke",
        {"data.global_batch": 16},
        "retrieval",
        "r_mean",
        0.1,
    ),
    "internvideo2-pretrain": Reference(
        "internvideo2/pretrain:size=base,monitor,smoke",
        {"data.global_batch": 8},
        "knn",
        "top1",
        0.25,
    ),
    "umt-pretrain": Reference(
        "umt/pretrain:size=base,monitor,smoke",
        {"data.global_batch": 8},
        "knn",
        "top1",
        0.25,
    ),
}
