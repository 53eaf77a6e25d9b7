"""What the train state looks like: its content, shapes and shardings, before it exists."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from internvideo_jax.config import TrainConfig
from internvideo_jax.optim.factory import Optimizer
from internvideo_jax.parallel.mesh import replicated
from internvideo_jax.parallel.rules import check_whole, param_shardings, state_shardings
from internvideo_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """Shapes and shardings of the train state, known before anything is allocated."""

    shapes: Any  # a TrainState of jax.ShapeDtypeStruct
    shardings: Any  # a TrainState of NamedSharding


def plan_state(config: TrainConfig, model: Any, optimizer: Optimizer, mesh: Mesh) -> StatePlan:
    """Plans the state; ValueError where a sharding rule does not fit the mesh or splits nothing."""
    params = model.shapes()
    shapes = jax.eval_shape(lambda p: new_state(p, optimizer, config), params)
    rules = model.config.sharding_rules
    sharded = param_shardings(params, rules, mesh, config.mesh.shard_above)
    check_whole(params, sharded, mesh, config.mesh.whole_limit)
    whole = replicated(mesh)
    shardings = TrainState(
        step=whole,  # pyright: ignore[reportArgumentType]
        params=sharded,
        opt_state=state_shardings(shapes.opt_state, params, sharded, mesh),
        ema=None if shapes.ema is None else sharded,
        nonfinite=whole,  # pyright: ignore[reportArgumentType]
    )
    return StatePlan(shapes, shardings)


def new_state(params: Any, optimizer: Optimizer, config: TrainConfig) -> TrainState:
    """State at step 0 around `params`."""
    averaged = jax.tree.map(jnp.copy, params) if config.optim.ema_decay > 0 else None
    return TrainState(jnp.int32(0), params, optimizer.init(params), averaged, jnp.int32(0))
