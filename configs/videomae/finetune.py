"""VideoMAE fine-tuning: a classifier from pre-trained weights, or from none.

    python -m internvideo_jax.train --config=configs/videomae/finetune.py:size=base \\
        --workdir=runs/finetune --config.data.train=shards/ --config.init_from=runs/pretrain

Options after the colon (comma separated):
  size      tiny | small | base | large | huge | giant

Values are those of the released Kinetics-400 scripts of VideoMAE V2 (MCG-NJU's for small):
layer-wise learning rates, two crops per decoded video, RandAugment, random erasing, mixup and
CutMix, label smoothing, drop path; test with 5 segments x 3 crops.
The number of classes comes from the data. `size=tiny` is for the built-in world and CPUs.
"""

from __future__ import annotations

import dataclasses

from data_pipelines.config import AugmentConfig, ClipConfig, DataConfig, ViewConfig
from internvideo_jax.cli import config_dict, parse_arg
from internvideo_jax.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig
from internvideo_jax.evaluators.classification import Classification as Accuracy
from internvideo_jax.models.videomae import ClassifierConfig
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.registry import suggest

REPEATS = 2  # crops per video


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the released fine-tuning scripts."""

    batch: int  # videos per step
    lr: float  # for 256 videos
    epochs: int
    layer_decay: float = 0.75
    drop_path: float = 0.1
    head_dropout: float = 0.0
    weight_decay: float = 0.05


RECIPES = {
    "small": Recipe(384, 5e-4, 150),
    "base": Recipe(512, 7e-4, 90),
    "large": Recipe(192, 2e-3, 35, drop_path=0.2),
    "huge": Recipe(128, 1e-3, 40, layer_decay=0.8, drop_path=0.2, head_dropout=0.5),
    "giant": Recipe(192, 1e-3, 30, layer_decay=0.9, drop_path=0.2, weight_decay=0.1),
}


def get_config(arg: str = ""):
    size = parse_arg(arg, size="base")["size"]
    if size == "tiny":
        return config_dict(tiny())
    if size not in RECIPES:
        raise ValueError(f"no recipe for size {size!r}: {suggest(size, RECIPES)}")
    recipe = RECIPES[size]
    clip = ClipConfig(frames=16, stride=4, size=224, sampling="dense")
    return config_dict(
        TrainConfig(
            model=ClassifierConfig.of_size(
                size,
                drop_path=recipe.drop_path,
                head_dropout=recipe.head_dropout,
                remat="full",
            ),
            objective=Classification(erasing=0.25),
            data=DataConfig(
                global_batch=recipe.batch * REPEATS,
                repeats=REPEATS,
                clip=clip,
                crop="random_resized",
                flip="auto",
                augment=AugmentConfig(rand_augment="rand-m7-n4-mstd0.5-inc1"),
            ),
            optim=OptimConfig(
                lr=recipe.lr,
                lr_batch=256 * REPEATS,  # the rates count videos
                min_lr=1e-6,
                b2=0.999,
                warmup_epochs=5,
                weight_decay=recipe.weight_decay,
                layer_decay=recipe.layer_decay,
            ),
            checkpoint=CheckpointConfig(every=1000),
            log=LogConfig(every=50),
            evals={"test": Accuracy(views=ViewConfig(clip=clip, segments=5, crops=3, batch=16))},
            epochs=recipe.epochs,
        )
    )


def tiny() -> TrainConfig:
    """48 pixels, 8 frames, 0.5 M parameters: minutes on two CPU cores.

    In a run this short what counts is when the loss leaves its plateau. Many small steps and a
    short memory of the second moment get it there: with b2 = 0.999, half the rate and 300 steps of
    32, one of three pre-trained starts stayed at chance.
    """
    clip = ClipConfig(frames=8, stride=2, size=48, sampling="window")
    views = ViewConfig(clip=dataclasses.replace(clip, sampling="dense"), batch=32)
    return TrainConfig(
        model=ClassifierConfig.of_size(
            "tiny",
            frames=8,
            size=48,
            pos_table="separable",
            dtype="float32",
            scan=False,
            head_scale=1.0,
        ),
        objective=Classification(mixup=0.0, cutmix=0.0),
        data=DataConfig(global_batch=16, clip=clip, crop="multiscale", flip="auto"),
        optim=OptimConfig(
            lr=2e-3, min_lr=1e-6, lr_batch=0, b2=0.95, warmup_steps=20, clip_norm=1.0
        ),
        checkpoint=CheckpointConfig(every=200),
        log=LogConfig(every=50),
        evals={"test": Accuracy(views=views)},
        steps=600,
    )
