"""An objective of three terms with three counts, in steps of a run on one device and on eight.

Started by test_losses.py; prints the largest differences and fails where they are too large.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.config import MeshConfig, OptimConfig, TrainConfig
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.layers.tower import TowerConfig
from internvideo_jax.ops.losses import soft_cross_entropy
from internvideo_jax.run.build import Run, build
from internvideo_jax.run.step import init_state, make_train_step
from internvideo_jax.tasks import Objective
from internvideo_jax.types import Batch, Loss, Mean, Params, Term

ROWS, CLASSES, STEPS = 32, 5, 3
TOWER = TowerConfig(width=32, depth=1, heads=4, hidden=64)
MODEL = VideoMAEClassifierConfig(
    encoder=TOWER, frames=2, resolution=16, patch=8, classes=CLASSES, dtype="float32"
)
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class ThreeTerms(Objective):
    """Of all examples, of those with an even label, and of every class above the label."""

    name: str = "three_terms"

    def check(self, config: Any) -> None:
        del config

    def loss(
        self, model: Any, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Loss:
        del key, step
        logits, label = model.apply(params, batch["video"]), batch["label"]
        even = (label % 2 == 0).astype(jnp.float32)
        above = (jnp.arange(CLASSES) > label[:, None]).astype(jnp.float32)
        terms = {
            "all": Term(Mean.of(soft_cross_entropy(logits, jax.nn.one_hot(label, CLASSES)))),
            "even": Term(Mean.of(jnp.square(logits).sum(axis=-1), even), 0.5),
            "above": Term(Mean.of(jnp.square(logits - 1.0), above), 2.0),
        }
        return Loss(terms, {"counted": Mean.of(even)})

    def flops(self, config: Any) -> float:
        return 3.0 * config.forward_flops()


def batch_of(number: int) -> dict[str, np.ndarray]:
    """Labels are sorted, so that microbatches and devices have other counts than each other."""
    rng = np.random.default_rng(number)
    return {
        "video": rng.integers(0, 256, (ROWS, 2, 16, 16, 3), dtype=np.uint8),
        "label": np.sort(rng.integers(0, CLASSES, ROWS)).astype(np.int32),
        "index": np.arange(ROWS, dtype=np.int32),
        "position": np.arange(number * ROWS, (number + 1) * ROWS, dtype=np.uint32),
    }


def built(accumulate: int, mesh: tuple[int, int, int]) -> Run:
    config = TrainConfig(
        model=MODEL,
        objective=ThreeTerms(),
        data=DataConfig(global_batch=ROWS, clip=ClipConfig(frames=2, stride=1, resolution=16)),
        # Plain steps: Adam's would blow up the rounding of gradients near zero.
        optim=OptimConfig(lr=0.1, lr_batch=0, eps=1.0, weight_decay=0.0, accumulate=accumulate),
        mesh=MeshConfig(*mesh, shard_above=64),
        steps=STEPS,
    )
    devices = jax.devices()[: int(np.prod(mesh))]
    return build(config, records=100, classes=CLASSES, devices=devices)


def trained(accumulate: int, mesh: tuple[int, int, int]) -> tuple[list[dict[str, float]], Params]:
    """Metrics of every step and the last parameters."""
    run = built(accumulate, mesh)
    state, step, found = init_state(run), make_train_step(run), []
    for number in range(STEPS):
        state, metrics = step(state, batch_of(number))
        found.append({name: float(value) for name, value in jax.device_get(metrics).items()})
    return found, jax.device_get(state.params)


def expected(number: int, params: Params) -> dict[str, float]:
    """The terms of a batch and their sum, in float64 from the logits."""
    batch = batch_of(number)
    logits = np.asarray(jax.jit(MODEL.model().apply)(params, batch["video"]), np.float64)
    label = batch["label"]
    even, above = label % 2 == 0, np.arange(CLASSES) > label[:, None]
    shifted = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    terms = {
        "train/all": -shifted[np.arange(ROWS), label].mean(),
        "train/even": np.square(logits).sum(axis=-1)[even].mean(),
        "train/above": np.square(logits - 1.0)[above].mean(),
    }
    total = terms["train/all"] + 0.5 * terms["train/even"] + 2.0 * terms["train/above"]
    return {**terms, "train/loss": total}


def compare(found: Any, wanted: Any) -> float:
    """The largest difference of metrics and parameters, of values above 1 relative to them."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1.0))) for a, b in pairs)


def main() -> None:
    one = trained(1, (1, 1, 1))
    assert one[0][0]["train/loss"] - one[0][-1]["train/loss"] > 0.1, "it does not learn"
    for accumulate, mesh in ((4, (1, 1, 1)), (1, (8, 1, 1)), (4, (8, 1, 1)), (4, (2, 2, 2))):
        worst = compare(trained(accumulate, mesh), one)
        print(accumulate, mesh, worst)
        assert worst <= TOLERANCE, (accumulate, mesh, worst)


if __name__ == "__main__":
    main()
