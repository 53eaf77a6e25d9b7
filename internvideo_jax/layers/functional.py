"""Flax NNX modules as pure functions over plain nested dicts of arrays.

A module is split once into a static graph definition and its arrays. Training code, sharding rules,
optimizer, checkpoints and weight import see names and arrays only; nothing outside `layers/` and
`families/` depends on the module library.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
from flax import nnx

from internvideo_jax.layers.init import draws
from internvideo_jax.layers.linear import Rounds
from internvideo_jax.protocols import ModelConfig, classes_of
from internvideo_jax.types import Params


class Network(Protocol):
    """A class of modules that are built from a config."""

    def __call__(self, config: Any, /, *, rngs: nnx.Rngs) -> nnx.Module: ...


class FunctionalModel:
    """`init(key) -> params` and `apply(params, *args, method=...)` for one network.

    `config` is the dataclass that the network was built from; objectives and evaluators read the
    token grid and the like from it.
    """

    def __init__(self, config: ModelConfig, network: Network):
        self.config = config
        self._network = network
        self._abstract = nnx.eval_shape(lambda: network(config, rngs=draws(0)))
        self._graph, state = nnx.split(self._abstract)
        self._shapes: Params = nnx.to_pure_dict(state)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32. Wrap in `jax.jit(..., out_shardings=...)` for large models."""
        return nnx.to_pure_dict(nnx.split(self._network(self.config, rngs=draws(key)))[1])

    def shapes(self) -> Params:
        """The parameter tree as `jax.ShapeDtypeStruct`s."""
        return self._shapes

    @property
    def kernels(self) -> frozenset[str]:
        """Paths of the kernels that products may round to eight bits."""
        return frozenset(
            "/".join(map(str, (*path, name)))
            for path, module in nnx.iter_graph(self._abstract)
            if isinstance(module, Rounds)
            for name in module.KERNELS
            if getattr(module, name) is not None
        )

    def has(self, method: str) -> bool:
        """Whether the network has this method, or a part of this name that can be called."""
        return callable(getattr(self._abstract, method, None))

    def apply(self, params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """Calls a method of the network with these parameters; pure, safe under jit and grad."""
        return getattr(nnx.merge(self._graph, params), method)(*args, **kwargs)


def check_classes(classes: int) -> None:
    """ValueError where it is not known yet how many classes a classifier has."""
    if classes < 1:
        raise ValueError(
            "config.model.classes is 0 and no dataset told how many there are: its records have no "
            "labels. `ivj ingest` takes them from sub-folders, one per class, or from the column "
            "label of a table"
        )


def classifier(config: ModelConfig, network: Network) -> FunctionalModel:
    """The network of a classifier; ValueError as `check_classes`."""
    check_classes(classes_of(config).classes)
    return FunctionalModel(config, network)


class WithStatistics(nnx.Module):
    """A classifier that may have running statistics: its training gives new ones."""

    def __call__(self, video: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Logits (B, classes) float32.

        Args:
          video: (B, T, H, W, 3) uint8, or float in 0..1.
          keys: (B,) keys in training: drop path, dropout, batch statistics; None in evaluation.
        """
        return self.train(video, keys)[0]

    def train(
        self, video: jax.Array, keys: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and new values of the running statistics by parameter path."""
        raise NotImplementedError
