"""The few types every room shares: the batch, the parameter tree, the train state, the loss."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A batch is a flat dict with fixed meanings; data_pipelines/stream/parts says which arrays a stream
# has, docs/data-reading.md lists them all:
#   video     (B, T, H, W, 3) uint8, or float32 in [0, 1]; absent where a set has no pixels
#   label     (B,)   int32, -1 where there is none
#   index     (B,)   int32, record number in the dataset
#   position  (B,)   uint32, in the endless training stream; every random draw of an example
#                    derives from it, so the draw does not depend on hosts, devices or microbatches
#   dataset   (B,)   int32, in a mixture: which of its sets
#   text      (B, L) int32 and has_text (B,) bool, where captions are asked for: token ids
#   valid     (B,)   bool, False for rows that only pad an evaluation batch
Batch = Mapping[str, Any]

# A pytree of jax: any nesting of arrays, of their shapes, or of their shardings.
Tree = Any
# A leaf of such a tree: an array on the devices or the host, or only its shape and type.
Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct
# A value as JSON has it, or as a config has it when it is plain.
Plain = Any

# Nested dict of arrays, keys as in `encoder/blocks/attn/qkv/kernel`.
Params = dict[str, Any]


class HeadGrid(NamedTuple):
    """Heads that train side by side, head p with its own learning rate and weight decay.

    Attributes:
      prefix: of the paths of their parameters, whose first axis counts the heads; everything else
        is frozen.
      rates, decays: (P,) of every head; the run's schedule is a factor on the rates.
    """

    prefix: str
    rates: tuple[float, ...]
    decays: tuple[float, ...]


class Mean(NamedTuple):
    """A mean that adds exactly over microbatches and hosts: `total / weight`."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array | None = None) -> Mean:
        """Mean of `values` (any shape) weighted by `weights` (same shape, default ones)."""
        values = values.astype(jnp.float32)
        if weights is None:
            return cls(values.sum(), jnp.float32(values.size))
        weights = weights.astype(jnp.float32)
        return cls((values * weights).sum(), weights.sum())

    def value(self) -> jax.Array:
        """`total / weight`; 0 when nothing was counted."""
        return self.total / jnp.maximum(self.weight, 1e-9)


class Running(NamedTuple):
    """A count that is smoothed over steps before it divides: `keep * old + (1 - keep) * count`.

    Attributes:
      path: of the scalar parameter that holds the old value and takes the new one. No gradient
        moves it, nor must weight decay.
      keep: share of the old value. A count below 1 enters as 1.
    """

    path: str
    keep: float


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["mean"], meta_fields=["weight", "running"]
)
@dataclasses.dataclass(frozen=True)
class Term:
    """One addend of a loss: `weight * mean.total / mean.weight`, each term over its own count.

    Attributes:
      mean: over the examples (tokens, pairs, anchors ...) that this term counts. The count must
        not depend on the parameters.
      weight: factor of the term.
      running: takes the place of the count; for losses that divide by a running average of it.
    """

    mean: Mean
    weight: float = 1.0
    running: Running | None = None


# A lone Mean is the one term of its objective.
Terms = Mean | Mapping[str, Term]


class Loss(NamedTuple):
    """What an objective says of a part of a batch. A plain pair (terms, metrics) does as well.

    Attributes:
      terms: their sum is minimised; with several of them each is logged under its name.
      metrics: further means to log.
      updates: new values of parameters that no gradient moves, such as the running statistics of a
        normalisation, by parameter path. Microbatches are averaged.
    """

    terms: Terms
    metrics: Mapping[str, Mean] = {}
    updates: Mapping[str, Mean] = {}

    @classmethod
    def of(cls, found: Found) -> Loss:
        """What an objective returned, pair or not."""
        return found if isinstance(found, Loss) else cls(*found)


Found = Loss | tuple[Terms, Mapping[str, Mean]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes. A checkpoint is this plus the data position.

    What a model runs with is made of `params` and `frozen`, see run/parameters.py.
    """

    step: jax.Array  # int32, number of finished steps
    params: Params  # those that learn
    opt_state: Tree
    ema: Params | None  # averaged `params`, None when switched off
    nonfinite: jax.Array  # int32, steps skipped because loss or gradient was not finite
    # Parameters of the model that never learn: no gradient, no moments, no average. Stored once for
    # all checkpoints of a run (checkpoint/apart.py).
    frozen: Params = dataclasses.field(default_factory=dict)

    def replace(self, **changes: Any) -> TrainState:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)


def flatten_paths(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Flattens nested dicts, lists, tuples and dataclasses to `{"a/b/c": leaf}`.

    Args:
      is_leaf: whether a node that could be flattened further is taken whole; None: none is.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: tuple[Any, ...]) -> str:
    """`a/b/c` for a jax key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def joined(one: Params, other: Params) -> Params:
    """Both trees in one; they share no path."""
    return unflatten_paths(flatten_paths(one) | flatten_paths(other)) if other else one


def unflatten_paths(flat: Mapping[str, Any]) -> Params:
    """Inverse of `flatten_paths` for trees of plain dicts."""
    tree: Params = {}
    for path, leaf in flat.items():
        node = tree
        *parents, last = path.split("/")
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def compiled(field: str, pattern: str) -> re.Pattern[str]:
    """A pattern of a field; ValueError where it is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{field} pattern {pattern!r} is no regular expression: {error}") from None


def matching(field: str, patterns: Sequence[str], paths: Sequence[str]) -> frozenset[str]:
    """Paths in which one of the patterns is found; ValueError for one that is found in none."""
    found: set[str] = set()
    for pattern in patterns:
        expression = compiled(field, pattern)
        hits = [path for path in paths if expression.search(path)]
        if not hits:
            raise ValueError(
                f"{field} pattern {pattern!r} matches no parameter; paths look like "
                f"{', '.join(paths[:3])}"
            )
        found.update(hits)
    return frozenset(found)
