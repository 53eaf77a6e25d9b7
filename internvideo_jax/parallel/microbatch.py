"""Gradient accumulation inside the step, with exact means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from internvideo_jax.parallel.mesh import constrain
from internvideo_jax.types import Batch, Found, Loss, Mean, Params, Term, Tree, flatten_paths

LossFn = Callable[[Params, Batch], Found]
EmbedFn = Callable[[Params, Batch], Any]
CompareFn = Callable[[Params, Any, Batch], Found]

# What adds over parts beside the loss: the count that is still to divide it, means, new values.
Beside = tuple[jax.Array | None, Mapping[str, Mean], Mapping[str, Mean]]


class Differentiated(NamedTuple):
    """Of a whole batch: the loss, its gradient, what is logged, new values by parameter path."""

    loss: jax.Array
    gradients: Params
    metrics: dict[str, jax.Array]
    updates: dict[str, jax.Array]


def value_and_gradient(
    loss: LossFn, params: Params, batch: Batch, microbatches: int
) -> Differentiated:
    """The loss, its gradient and further means, over `microbatches` equal parts of the batch.

    Every term is divided by its count in the whole batch, so the result does not depend on how the
    batch is cut, even where parts have different counts. Totals of a lone mean are added and
    divided once. Of several terms the counts must be known before the gradients are added: a pass
    over the parts makes the counts first, and nothing else.

    Args:
      loss: (params, part) -> `Loss`; counts must not depend on the parameters.
    """

    def counts(part: Batch) -> dict[str, jax.Array]:
        return _counts(Loss.of(loss(params, part)))

    def differentiated(counted: Mapping[str, jax.Array] | None) -> Any:
        def total(params: Params, part: Batch) -> tuple[jax.Array, Beside]:
            return _summed(Loss.of(loss(params, part)), params, counted)

        return jax.value_and_grad(total, has_aux=True)

    if microbatches == 1:
        return _finished(*differentiated(None)(params, batch))
    parts, counted = _split(dict(batch), microbatches), None
    if jax.eval_shape(counts, jax.tree.map(lambda x: x[0], parts)):
        counted = jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(counts, parts))
    return _finished(*_accumulate(differentiated(counted), params, parts))


def cached_value_and_gradient(
    embed: EmbedFn,
    compare: CompareFn,
    params: Params,
    batch: Batch,
    microbatches: int,
    beside: LossFn | None = None,
) -> Differentiated:
    """As `value_and_gradient`, of a loss between all examples of the batch.

    Gradient caching (Gao et al. 2021, GradCache): the embeddings of all parts without what their
    backward pass would need, the loss and its gradient by the embeddings, then every part once more
    with its backward pass. The result is that of one part; each part is computed twice.

    Args:
      embed: (params, part) -> tree of arrays with a row per example, a function of these examples
        only. Totals and counts of terms that each example has alone may be among them.
      compare: (params, embeddings, batch) -> `Loss`; counts must not depend on the parameters.
      beside: as the loss of `value_and_gradient`; its terms are added.
    """
    parts = _split(dict(batch), microbatches)
    embeddings = _join(jax.lax.map(lambda part: embed(params, part), parts))

    def total(params: Params, embeddings: Tree) -> tuple[jax.Array, Beside]:
        return _summed(Loss.of(compare(params, embeddings, batch)), params)

    (value, aux), (gradients, wanted) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        params, embeddings
    )

    def add(sums: Params, item: tuple[Batch, Any]) -> tuple[Params, None]:
        part, wanted = item
        pull = jax.vjp(lambda params: embed(params, part), params)[1]
        return jax.tree.map(jnp.add, sums, pull(wanted)[0]), None

    gradients, _ = jax.lax.scan(add, gradients, (parts, _split(wanted, microbatches)))
    found = _finished((value, aux), gradients)
    if beside is None:
        return found
    more = value_and_gradient(beside, params, batch, microbatches)
    return Differentiated(
        found.loss + more.loss,
        jax.tree.map(jnp.add, found.gradients, more.gradients),
        found.metrics | more.metrics,
        found.updates | more.updates,
    )


def _counts(found: Loss) -> dict[str, jax.Array]:
    """Counts of the terms by name; none of a lone mean, which is divided at the end."""
    if isinstance(found.terms, Mean):
        return {}
    return {name: term.mean.weight for name, term in found.terms.items()}


def _summed(
    found: Loss, params: Params, counted: Mapping[str, jax.Array] | None = None
) -> tuple[jax.Array, Beside]:
    """What is differentiated, and what comes beside it.

    Args:
      counted: of every term, over the whole batch; None: this is the whole batch.
    """
    if isinstance(found.terms, Mean):
        return found.terms.total, (found.terms.weight, found.metrics, found.updates)
    total, means, updates = jnp.float32(0.0), {}, dict(found.updates)
    for name, term in found.terms.items():
        count = term.mean.weight if counted is None else counted[name]
        divisor = jax.lax.stop_gradient(_divisor(term, count, params))
        if term.running is not None:
            updates[term.running.path] = Mean(divisor, jnp.float32(1.0))
        total += term.weight * term.mean.total / divisor
        means[name] = term.mean
    return total, (None, {**found.metrics, **means}, updates)


def _divisor(term: Term, count: jax.Array, params: Params) -> jax.Array:
    if term.running is None:
        return jnp.maximum(count, 1e-9)
    path, keep = term.running
    return keep * flatten_paths(params)[path] + (1.0 - keep) * jnp.maximum(count, 1.0)


def _finished(found: tuple[jax.Array, Beside], gradients: Params) -> Differentiated:
    value, (count, metrics, updates) = found
    if count is not None:
        count = jnp.maximum(count, 1e-9)
        gradients = jax.tree.map(lambda g: g / count, gradients)
        value = value / count
    means, new = (
        {name: mean.value() for name, mean in each.items()} for each in (metrics, updates)
    )
    return Differentiated(value, gradients, means, new)


def _split(tree: Tree, microbatches: int) -> Tree:
    """(B, ...) -> (microbatches, B / microbatches, ...) of every array."""

    def split(x: jax.Array) -> jax.Array:
        # Rows are dealt out so that every device keeps its own: part i takes rows i, i + n, ...
        parts = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, None, "batch")

    return jax.tree.map(split, tree)


def _join(parts: Tree) -> Tree:
    """Inverse of `_split`."""

    def join(x: jax.Array) -> jax.Array:
        return constrain(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), "batch")

    return jax.tree.map(join, parts)


def _accumulate(gradient: Tree, params: Params, parts: Batch) -> Tree:
    def add(sums: Tree, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(params, part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, params, first)
    )
    sums, _ = jax.lax.scan(add, zeros, parts)
    return sums
