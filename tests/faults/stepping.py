"""The training loop with all that belongs to it but the train step, which takes long to compile."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvideo_jax.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
)
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.objectives.masked_pixels import MaskedPixels


def config(shards: Path, *, every: int, steps: int, **changes: Any) -> TrainConfig:
    """A run of a very small model on a set of `tests.data_pipelines.sets`."""
    small = {"width": 16, "hidden": 32, "heads": 2}
    model = PretrainConfig.of_size("tiny", decoder_depth=1, frames=4, resolution=16, patch=8)
    model = dataclasses.replace(
        model,
        encoder=dataclasses.replace(model.encoder, depth=2, **small),
        decoder=dataclasses.replace(model.decoder, **small),
    )
    data = DataConfig(train=str(shards), global_batch=2)
    clip = dataclasses.replace(data.clip, frames=4, stride=1, resolution=16)
    found = TrainConfig(
        model=model,
        objective=MaskedPixels(mask_ratio=0.5),
        data=dataclasses.replace(data, clip=clip),
        optim=OptimConfig(ema_decay=0.9),
        checkpoint=CheckpointConfig(every=every, asynchronous=False),
        log=LogConfig(every=1, report=False),
        steps=steps,
    )
    return dataclasses.replace(found, **changes)


def stepping(skipped: Collection[int] = (), set_to: Mapping[int, float] | None = None) -> Any:
    """Instead of `make_train_step`: a step that adds noise of its number to the state.

    Args:
      skipped: steps whose loss is not finite; they change nothing and are counted.
      set_to: by step, a value that its update leaves in every parameter; as long as one has a
        size of 1e10 and more, steps are skipped, as they would be.
    """
    set_to = set_to or {}

    def make(run: Any, frozen: Any) -> Any:
        del run, frozen

        def step(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
            del batch
            number = int(state.step) + 1
            rng = np.random.default_rng(number)
            largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(state.params))
            if number in skipped or not largest < 1e10:
                state = state.replace(step=state.step + 1, nonfinite=state.nonfinite + 1)
                loss = float("nan")
            else:
                trees = (state.params, state.opt_state, state.ema)
                params, opt_state, ema = jax.tree.map(lambda leaf: _moved(leaf, rng), trees)
                if number in set_to:
                    params = jax.tree.map(lambda leaf: leaf * 0 + set_to[number], params)
                state = state.replace(
                    step=state.step + 1, params=params, opt_state=opt_state, ema=ema
                )
                loss = 1.0 / number
            names = {"loss": loss, "lr": 0.1, "nonfinite": state.nonfinite}
            return state, {f"train/{name}": value for name, value in names.items()}

        return step

    return make


def _moved(leaf: jax.Array, rng: np.random.Generator) -> jax.Array:
    noise = rng.standard_normal(leaf.shape, np.float32)
    return jax.device_put((np.asarray(leaf) + noise).astype(leaf.dtype), leaf.sharding)
