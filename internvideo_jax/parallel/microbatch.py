"""Gradient accumulation inside the step, with exact means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from internvideo_jax.parallel.mesh import constrain
from internvideo_jax.types import Batch, Mean, Params

LossFn = Callable[[Params, Batch], tuple[Mean, dict[str, Mean]]]
EmbedFn = Callable[[Params, Batch], Any]
CompareFn = Callable[[Params, Any, Batch], tuple[Mean, dict[str, Mean]]]


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
    return _divided(value, weight, gradients, metrics)


def cached_value_and_gradient(
    embed: EmbedFn, compare: CompareFn, params: Params, batch: Batch, microbatches: int
) -> tuple[jax.Array, Params, dict[str, jax.Array]]:
    """As `value_and_gradient`, of a loss between all examples of the batch.

    Gradient caching (Gao et al. 2021, GradCache): the embeddings of all parts without what their
    backward pass would need, the loss and its gradient by the embeddings, then every part once more
    with its backward pass. The result is that of one part; each part is computed twice.

    Args:
      embed: (params, part) -> tree of arrays with a row per example, a function of these examples
        only.
      compare: (params, embeddings, batch) -> (mean, further means); the weight must not depend on
        the parameters.
    """
    parts = _split(dict(batch), microbatches)
    embeddings = _join(jax.lax.map(lambda part: embed(params, part), parts))

    def total(params: Params, embeddings: Any) -> tuple[jax.Array, Any]:
        mean, metrics = compare(params, embeddings, batch)
        return mean.total, (mean.weight, metrics)

    (value, (weight, metrics)), (gradients, wanted) = jax.value_and_grad(
        total, argnums=(0, 1), has_aux=True
    )(params, embeddings)

    def add(sums: Params, item: tuple[Batch, Any]) -> tuple[Params, None]:
        part, wanted = item
        pull = jax.vjp(lambda params: embed(params, part), params)[1]
        return jax.tree.map(jnp.add, sums, pull(wanted)[0]), None

    gradients, _ = jax.lax.scan(add, gradients, (parts, _split(wanted, microbatches)))
    return _divided(value, weight, gradients, metrics)


def _divided(
    value: jax.Array, weight: jax.Array, gradients: Params, metrics: dict[str, Mean]
) -> tuple[jax.Array, Params, dict[str, jax.Array]]:
    weight = jnp.maximum(weight, 1e-9)
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    return value / weight, gradients, {name: mean.value() for name, mean in metrics.items()}


def _split(tree: Any, microbatches: int) -> Any:
    """(B, ...) -> (microbatches, B / microbatches, ...) of every array."""

    def split(x: jax.Array) -> jax.Array:
        # Rows are dealt out so that every device keeps its own: part i takes rows i, i + n, ...
        parts = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch")

    return jax.tree.map(split, tree)


def _join(parts: Any) -> Any:
    """Inverse of `_split`."""

    def join(x: jax.Array) -> jax.Array:
        return constrain(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), "batch")

    return jax.tree.map(join, parts)


def _accumulate(gradient: Any, params: Params, batch: Batch, microbatches: int) -> Any:
    parts = _split(dict(batch), microbatches)

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(params, part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, params, first)
    )
    sums, _ = jax.lax.scan(add, zeros, parts)
    return sums
