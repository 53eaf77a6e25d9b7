"""Gradient accumulation inside the step, with exact means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from internvideo_jax.parallel.mesh import constrain
from internvideo_jax.types import Batch, Mean, Params

LossFn = Callable[[Params, Batch], tuple[Mean, dict[str, Mean]]]


def value_and_gradient(
    loss: LossFn, params: Params, batch: Batch, microbatches: int
) -> tuple[jax.Array, Params, dict[str, jax.Array]]:
    """Mean loss, its gradient and further means, over `microbatches` equal parts of the batch.

    Totals and weights are added apart and divided once, so the result is the mean over the whole
    batch even where parts have different weights.

    Args:
      loss: (params, batch) -> (mean, further means); the weight must not depend on the parameters.
    """

    def total(params: Params, part: Batch) -> tuple[jax.Array, tuple[jax.Array, dict[str, Mean]]]:
        mean, metrics = loss(params, part)
        return mean.total, (mean.weight, metrics)

    gradient = jax.value_and_grad(total, has_aux=True)
    if microbatches == 1:
        sums = gradient(params, batch)
    else:
        sums = _accumulate(gradient, params, batch, microbatches)
    (value, (weight, metrics)), gradients = sums
    weight = jnp.maximum(weight, 1e-9)
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    return value / weight, gradients, {name: mean.value() for name, mean in metrics.items()}


def _accumulate(gradient: Any, params: Params, batch: Batch, microbatches: int) -> Any:
    def split(x: jax.Array) -> jax.Array:
        # Rows are dealt out so that every device keeps its own: part i takes rows i, i + n, ...
        parts = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch")

    parts = jax.tree.map(split, dict(batch))

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(params, part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, params, first)
    )
    sums, _ = jax.lax.scan(add, zeros, parts)
    return sums
