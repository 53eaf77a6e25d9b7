"""From a config to the pieces of a run, each checked before anything is allocated."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from data_pipelines.dataset import open_dataset
from internvideo_jax.config import TrainConfig, total_steps, warmup_steps
from internvideo_jax.optim.factory import Optimizer, make_optimizer
from internvideo_jax.optim.schedules import cosine
from internvideo_jax.parallel.mesh import check_batch, make_mesh
from internvideo_jax.state import StatePlan, plan_state
from internvideo_jax.telemetry.overview import memory_estimate, parameter_table


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that is known about a run before its first step."""

    config: TrainConfig  # resolved: classes filled in
    mesh: Mesh
    model: Any
    objective: Any
    optimizer: Optimizer
    plan: StatePlan
    records: int
    steps: int
    summary: str

    @property
    def flops(self) -> float:
        """Model FLOPs of one training example."""
        return self.objective.flops(self.config.model)


def build(config: TrainConfig, records: int | None = None, classes: int = 0) -> Run:
    """Builds the pieces of a run.

    Args:
      records, classes: of the training split; by default read from config.data.train.

    Raises:
      ValueError: settings that contradict each other, the data or the devices.
    """
    if records is None:
        dataset = open_dataset(config.data.train, config.data.split)
        records, classes = len(dataset), len(dataset.classes)
    config = with_classes(config, classes)
    mesh = make_mesh(config.mesh)
    batch, optim = config.data.global_batch, config.optim
    check_batch(mesh, batch, "config.data.global_batch", optim.accumulate)
    clip = config.data.clip
    if (clip.frames, clip.size) != (config.model.frames, config.model.size):
        raise ValueError(
            f"config.data.clip gives {clip.frames} frames of {clip.size} pixels, config.model "
            f"takes {config.model.frames} frames of {config.model.size}"
        )
    model = config.model.model()
    config.objective.check(config.model)

    steps, warmup = total_steps(config, records), warmup_steps(config, records)
    scale = batch / optim.lr_batch if optim.lr_batch else 1.0
    schedule = cosine(optim.lr * scale, optim.min_lr * scale, steps, warmup)
    optimizer = make_optimizer(optim, model.shapes(), schedule)
    plan = plan_state(config, model, optimizer, mesh)
    summary = "\n".join(
        [
            parameter_table(model.shapes(), plan.shardings.params),
            memory_estimate(plan.shapes, plan.shardings, batch * clip.frames * clip.size**2 * 3),
            f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}; {records} clips; "
            f"{steps} steps of {batch} clips; learning rate {optim.lr:g} x {scale:g} = "
            f"{optim.lr * scale:g} after {warmup} steps of warm-up",
        ]
    )
    return Run(config, mesh, model, config.objective, optimizer, plan, records, steps, summary)


def with_classes(config: TrainConfig, classes: int) -> TrainConfig:
    """Fills in the number of classes where the model leaves it to the data.

    Raises:
      ValueError: the model's number is another than the data set's.
    """
    if not hasattr(config.model, "classes"):
        return config
    if config.model.classes not in (0, classes):
        raise ValueError(
            f"config.model.classes = {config.model.classes}, the data set has {classes} classes; "
            "set it to 0 to take the number from the data"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, classes=classes))
