"""One row of a table of fine-tuning recipes, and the run that it stands for.

VideoMAE and the families after it fine-tune alike: layer-wise learning rates, RandAugment, random
resized crops, random erasing, mixup and CutMix, label smoothing. Recipes in `configs/` hold rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipelines.config import AugmentConfig, ClipConfig, DataConfig, ViewConfig
from internvideo_jax.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.protocols import ModelConfig
from internvideo_jax.recipes.clips import clip_for


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between released fine-tuning scripts."""

    batch: int  # videos per step
    lr: float  # for 256 videos, or crops
    epochs: int
    layer_decay: float = 0.75
    drop_path: float = 0.1
    head_dropout: float = 0.0
    weight_decay: float = 0.05
    min_lr: float = 1e-6  # for as many
    warmup_lr: float = 0.0  # for as many
    warmup: int = 5  # epochs
    clip_norm: float = 0.0
    repeats: int = 2  # crops per video
    rates_count: str = "videos"  # or crops: what 256 of them are meant by the rates
    sampling: str = "dense"
    stride: int = 4
    protocol: str = (
        "videomae/kinetics"  # of the test: internvideo_jax/evaluators/published/protocols.py
    )
    flip: str = "auto"
    policy: str = "rand-m7-n4-mstd0.5-inc1"  # RandAugment
    freeze: Sequence[str] = ()
    start: str = ""  # the published weights it starts from; empty: pre-trained ones of its size
    head_rows: str = ""  # of their head that are kept; empty: none, the classes are others
    reported: str = ""  # top-1 / top-5 and who says so
    like: str = ""  # no script was released: whose values these are

    def config(self, model: ModelConfig) -> TrainConfig:
        """The run of a classifier `model`, whose drop path and head the caller has set."""
        clip = clip_for(model, self.sampling, self.stride)
        return TrainConfig(
            model=model,
            objective=Classification(erasing=0.25),
            data=DataConfig(
                global_batch=self.batch * self.repeats,
                repeats=self.repeats,
                clip=clip,
                crop="random_resized",
                flip=self.flip,
                augment=AugmentConfig(rand_augment=self.policy),
            ),
            optim=OptimConfig(
                lr=self.lr,
                lr_batch=256 * (self.repeats if self.rates_count == "videos" else 1),
                min_lr=self.min_lr,
                warmup_lr=self.warmup_lr,
                b2=0.999,
                warmup_epochs=self.warmup,
                weight_decay=self.weight_decay,
                layer_decay=self.layer_decay,
                clip_norm=self.clip_norm,
                freeze=self.freeze,
            ),
            checkpoint=CheckpointConfig(every=1000),
            log=LogConfig(every=50),
            evals={
                "test": Accuracy.of_protocol(
                    self.protocol, frames=clip.frames, resolution=clip.resolution, batch=16
                )
            },
            epochs=self.epochs,
            head_rows=self.head_rows,
        )


@dataclasses.dataclass(frozen=True)
class SteppedRecipe(Recipe):
    """A script of the kind of Unmasked Teacher: one frame of each of T parts, rates for crops."""

    warmup_lr: float = 1e-6
    rates_count: str = "crops"
    sampling: str = "stepped"
    stride: int = 1
    frames: int = 8
    pixels: int = 224


PLAIN = Classification(mixup=0.0, cutmix=0.0)
# In a run this short what counts is when the loss leaves its plateau. Many small steps and a short
# memory of the second moment get it there: with b2 = 0.999, half the rate and 300 steps of 32, one
# of three pre-trained starts stayed at chance.
TINY_OPTIM = OptimConfig(lr=2e-3, min_lr=1e-6, lr_batch=0, b2=0.95, warmup_steps=20, clip_norm=1.0)


def tiny_run(
    model: ModelConfig,
    test: ViewConfig | Accuracy | None = None,
    *,
    objective: Classification = PLAIN,
    optim: OptimConfig = TINY_OPTIM,
    clip: ClipConfig | None = None,
    batch: int = 16,
    steps: int = 600,
) -> TrainConfig:
    """Minutes on two CPU cores: a small `model` on all that its classifier does, nothing mixed.

    Args:
      test: of the end, or the clips it looks at, by default those of training.
      clip: by default one frame of each part of the video.
    """
    clip = clip_for(model) if clip is None else clip
    if not isinstance(test, Accuracy):
        test = Accuracy(views=ViewConfig(clip=clip, batch=32) if test is None else test)
    return TrainConfig(
        model=model,
        objective=objective,
        data=DataConfig(global_batch=batch, clip=clip, crop="multiscale", flip="auto"),
        optim=optim,
        checkpoint=CheckpointConfig(every=200),
        log=LogConfig(every=50),
        evals={"test": test},
        steps=steps,
    )
