"""Short training runs on the built-in world whose losses are stored beside this file.

    python -m tests.internvideo_jax.objectives.curves

writes them anew; do so only when numerics were meant to change, and say why in the commit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.videomae import finetune, pretrain
from data_pipelines.synthetic import ACTIONS, World
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step

STORED = Path(__file__).with_name("curves.json")
STEPS, BATCH, CLIPS = 100, 8, 200
CURVES = {
    "masked_pixels": (pretrain, MaskedPixels(mask_ratio=0.75)),
    "masked_pixels_dual_raw": (
        pretrain,
        MaskedPixels(mask_ratio=0.75, decoder_ratio=0.5, normalized=False),
    ),
    "classification": (finetune, Classification(mixup=0.0, cutmix=0.0)),
    "classification_mixed": (finetune, Classification()),
}
# Other core counts and instruction sets (SSE4.2, AVX2, AVX-512) moved them by at most 7e-6, a
# learning rate one per cent higher moves them by 8e-4 and more.
TOLERANCE = 5e-5


@functools.cache
def world() -> tuple[np.ndarray, np.ndarray]:
    """(CLIPS, 8, 48, 48, 3) uint8 frames as rendered, without a codec, and their labels."""
    clips = [World(size=48, frames=16).clip(index) for index in range(CLIPS)]
    return np.stack([clip.video[::2] for clip in clips]), np.array(
        [clip.action for clip in clips], np.int32
    )


def config_of(name: str) -> TrainConfig:
    recipe, objective = CURVES[name]
    config = to_typed(TrainConfig, recipe.get_config("size=tiny").to_dict())
    return dataclasses.replace(
        config,
        objective=objective,
        data=dataclasses.replace(config.data, global_batch=BATCH),
        optim=dataclasses.replace(config.optim, warmup_steps=10),
        steps=STEPS,
    )


def losses(config: TrainConfig) -> np.ndarray:
    """The training loss of every step."""
    return np.array(jax.device_get(list(steps(config))))


def steps(config: TrainConfig) -> Iterator[Any]:
    """The training loss, step by step."""
    videos, labels = world()
    run = build(config, records=CLIPS, classes=len(ACTIONS))
    state, step = init_state(run), make_train_step(run)
    for number in range(config.steps):
        position = np.arange(number * BATCH, (number + 1) * BATCH)
        index = position % CLIPS
        batch = {
            "video": videos[index],
            "label": labels[index],
            "index": index.astype(np.int32),
            "position": position.astype(np.uint32),
        }
        state, metrics = step(state, batch)
        yield metrics["train/loss"]


def show(name: str, faster: float = 1.0, apart: float = math.inf) -> None:
    """Prints the training loss of every step, up to the first one that is told from the stored one.

    Args:
      faster: times the learning rate of the curve.
      apart: difference that tells a loss from the stored one.
    """
    config, stored = config_of(name), json.loads(STORED.read_text())[name]
    optim = dataclasses.replace(config.optim, lr=faster * config.optim.lr)
    for found, other in zip(steps(dataclasses.replace(config, optim=optim)), stored, strict=False):
        print(float(found))
        if abs(float(found) - other) > apart:
            break


def main() -> None:
    curves = {name: [round(float(x), 6) for x in losses(config_of(name))] for name in CURVES}
    STORED.write_text(json.dumps(curves, indent=0) + "\n")
    for name, curve in curves.items():
        print(f"{name:24} {curve[0]:.4f} -> {curve[-1]:.4f}")


if __name__ == "__main__":
    main()
