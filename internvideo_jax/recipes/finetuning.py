"""One row of a table of fine-tuning recipes, and the run that it stands for.

VideoMAE and the families after it fine-tune alike: layer-wise learning rates, RandAugment, random
resized crops, random erasing, mixup and CutMix, label smoothing. Recipes in `configs/` hold rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipelines.config import AugmentConfig, ClipConfig, DataConfig
from internvideo_jax.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.protocols import ModelConfig, clip_of


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
        takes = clip_of(model)
        clip = ClipConfig(
            frames=takes.frames,
            stride=self.stride,
            resolution=takes.resolution,
            sampling=self.sampling,
        )
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
                    self.protocol, frames=takes.frames, resolution=takes.resolution, batch=16
                )
            },
            epochs=self.epochs,
            head_rows=self.head_rows,
        )
