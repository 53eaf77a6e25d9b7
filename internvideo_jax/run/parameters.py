"""Which parameters of a model learn, and how those that it runs with are made of them."""

from __future__ import annotations

import dataclasses

import jax

from internvideo_jax.config import LoraConfig
from internvideo_jax.ops import lora
from internvideo_jax.protocols import Model
from internvideo_jax.types import (
    Params,
    TrainState,
    flatten_paths,
    joined,
    matching,
    unflatten_paths,
)

DTYPES = ("float32", "bfloat16")  # config.lora.dtype
OWN = 0x4C6F5241  # the stream of draws of adapters, beside that of parameters and of examples


@dataclasses.dataclass(frozen=True)
class Parametrisation:
    """The model's parameters as those that learn and those that do not.

    Attributes:
      frozen: paths of the model's parameters that never learn.
      adapted: kernels among them that have adapters (ops/lora.py).
      config: of the adapters; rank 0: there are none.
    """

    frozen: frozenset[str] = frozenset()
    adapted: frozenset[str] = frozenset()
    config: LoraConfig = LoraConfig()

    def split(self, params: Params, key: jax.Array) -> tuple[Params, Params]:
        """(parameters that learn, frozen ones) of a model's; fresh adapters are drawn by `key`."""
        if not self.frozen:
            return params, {}
        flat = flatten_paths(params)
        learning = {path: leaf for path, leaf in flat.items() if path not in self.frozen}
        frozen = {path: self._held(path, flat[path]) for path in flat if path in self.frozen}
        tree = unflatten_paths(learning)
        if self.adapted:
            kernels = {path: flat[path] for path in self.adapted}
            draws = jax.random.fold_in(key, OWN)
            tree[lora.ADAPTERS] = lora.init(draws, kernels, self.config.rank)
        return tree, unflatten_paths(frozen)

    def _held(self, path: str, leaf: jax.Array) -> jax.Array:
        matrix = self.config.rank and path.endswith("kernel")
        return leaf.astype(self.config.dtype) if matrix else leaf

    def whole(self, params: Params, frozen: Params) -> Params:
        """What the model runs with."""
        together = joined(params, frozen)
        if not self.adapted:
            return together
        return lora.merge(together, lora.scale(self.config.rank, self.config.alpha))

    def base(self, state: TrainState) -> Params:
        """The model's parameters as they were before adapters."""
        learning = {name: tree for name, tree in state.params.items() if name != lora.ADAPTERS}
        return joined(learning if self.adapted else state.params, state.frozen)

    def of(self, state: TrainState, *, averaged: bool = False) -> Params:
        """The model's parameters in a train state, the averaged ones where wanted and there."""
        params = state.ema if averaged and state.ema is not None else state.params
        return self.whole(params, state.frozen) if self.frozen else params


def parametrisation(config: LoraConfig, model: Model) -> Parametrisation:
    """What of a model learns under `config`.

    Raises:
      ValueError: a pattern that matches nothing, adapters of a model whose trunk never learns, a
        name that the model has itself.
    """
    paths = list(flatten_paths(model.shapes()))
    never = frozenset(path for path in paths if path.startswith(model.config.traits.frozen))
    if not config.rank:
        return Parametrisation(never)
    if never:
        raise ValueError(
            f"config.lora.rank = {config.rank}: config.model is {model.config.name!r}, of which "
            f"{', '.join(model.config.traits.frozen)} never learns; set it to 0"
        )
    if config.dtype not in DTYPES:
        raise ValueError(
            f"config.lora.dtype = {config.dtype!r}: expected one of {', '.join(DTYPES)}"
        )
    if any(path.startswith(f"{lora.ADAPTERS}/") for path in paths):
        raise ValueError(f"config.lora: the model has parameters under {lora.ADAPTERS}/ itself")
    adapted = matching("config.lora.targets", config.targets, paths)
    if not adapted:
        raise ValueError("config.lora.rank > 0 and no config.lora.targets: nothing gets adapters")
    learning = matching("config.lora.train", config.train, paths)
    if both := sorted(adapted & learning):
        raise ValueError(
            f"config.lora.targets and config.lora.train both match {both[0]}: it has adapters or "
            "learns as it is"
        )
    return Parametrisation(frozenset(paths) - learning, adapted, config)
