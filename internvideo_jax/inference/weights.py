"""A checkpoint as a model with its parameters on the devices."""

from __future__ import annotations

import dataclasses
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from internvideo_jax.checkpoint.initial import InitialWeights, initialise
from internvideo_jax.config import TrainConfig
from internvideo_jax.inference.quantized import QuantizedModel, note, quantized
from internvideo_jax.parallel.multihost import is_main
from internvideo_jax.parallel.rules import param_shardings
from internvideo_jax.protocols import Model
from internvideo_jax.types import Params


def on_devices(config: TrainConfig, model: Model, params: Params, mesh: Mesh) -> Params:
    """Parameters in the shards that the model's rules say, kernels rounded where it rounds them."""
    rules, above = model.config.sharding_rules, config.mesh.shard_above
    shardings = param_shardings(model.shapes(), rules, mesh, above)
    if not isinstance(model, QuantizedModel):
        return jax.tree.map(jax.device_put, params, shardings)
    if is_main():
        print(note(model, mesh), file=sys.stderr, flush=True)
    return model.store(params, shardings)


def load(
    config: TrainConfig, checkpoint: str, mesh: Mesh, source: InitialWeights | None = None
) -> tuple[Model, Params]:
    """The model and its parameters; a head that the checkpoint lacks is 0, as it is not used.

    Args:
      source: what the checkpoint holds, where it was read before.
    """
    settings, head = config.model, config.model.traits.classifier
    if head and not head.classes:
        settings = dataclasses.replace(settings, classes=1)
    model = quantized(settings.model(), config.quantization)
    params, report = initialise(checkpoint, model.shapes(), settings, source=source)
    absent = [name for name in report.fresh if not name.startswith("head/")]
    if absent:
        raise ValueError(
            f"{checkpoint} lacks {len(absent)} parameters of the model, first {absent[0]}; take "
            "the recipe that it was trained with"
        )
    params = jax.tree.map(
        lambda leaf: (
            np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        ),
        params,
    )
    return model, on_devices(config, model, params, mesh)
