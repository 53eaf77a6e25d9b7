"""Many heads trained at once, each exactly as if it were alone.

Head p has row p of every parameter under the grid's prefix. Moments go by element anyway; what
would mix heads is done per head here: clipping, weight decay, the learning rate.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from internvideo_jax.config import OptimConfig
from internvideo_jax.types import (
    HeadGrid,
    Tree,
)


def check_grid(grid: HeadGrid, config: OptimConfig, paths: Collection[str]) -> None:
    """ValueError for settings that a grid of heads decides itself, or a grid without heads."""
    if not any(path.startswith(grid.prefix) for path in paths):
        raise ValueError(f"no parameter lies under {grid.prefix!r}: there are no heads to train")
    if len(grid.rates) != len(grid.decays) or not grid.rates:
        raise ValueError(
            f"{len(grid.rates)} learning rates and {len(grid.decays)} weight decays of heads: "
            "expected one of each per head, and one head at least"
        )
    for field, values in (("learning_rates", grid.rates), ("weight_decays", grid.decays)):
        for value in values:
            if not 0 <= value < np.inf:
                raise ValueError(
                    f"config.model.{field}: {value} is among them, expected finite numbers from 0"
                )
    for field, found, neutral in (
        ("weight_decay", config.weight_decay, 0.0),
        ("layer_decay", config.layer_decay, 1.0),
    ):
        if found != neutral:
            raise ValueError(
                f"config.optim.{field} = {found:g}, but every head of a probe has its own rate and "
                f"decay (config.model.learning_rates, weight_decays); set it to {neutral:g}"
            )


def head_chain(
    grid: HeadGrid, clip_norm: float, moments: optax.GradientTransformation, decayed: Tree
) -> list[optax.GradientTransformation]:
    """Clipping by the norm of each head (0 = off), moments, decay and rate of each head."""
    rates, decays = (np.asarray(values, np.float32) for values in (grid.rates, grid.decays))
    return [
        optax.stateless(lambda updates, _: clip_heads(updates, clip_norm))
        if clip_norm > 0
        else optax.identity(),
        moments,
        optax.masked(
            optax.stateless(
                lambda updates, params: jax.tree.map(
                    lambda update, value: update + along(decays, value) * value, updates, params
                )
            ),
            decayed,
        ),
        optax.stateless(
            lambda updates, _: jax.tree.map(lambda update: update * along(rates, update), updates)
        ),
    ]


def clip_heads(updates: Tree, limit: float) -> Any:
    """Every head's gradient cut to an L2 norm of `limit`."""
    squares = [
        jnp.square(leaf).sum(axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(updates)
    ]
    norms = jnp.sqrt(sum(squares[1:], squares[0]))
    factor = limit / jnp.maximum(norms, limit)
    return jax.tree.map(lambda leaf: leaf * along(factor, leaf), updates)


def along(values: jax.typing.ArrayLike, leaf: jax.Array) -> jax.Array:
    """(P,) values so that they broadcast over the first axis of a (P, ...) leaf."""
    return jnp.asarray(values, leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
