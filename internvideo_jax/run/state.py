"""What the train state looks like: its content, shapes and shardings, before it exists."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax.config import MeshConfig, TrainConfig
from internvideo_jax.optim.factory import Optimizer, map_paths
from internvideo_jax.parallel.mesh import BATCH_AXES, auto_mesh, batch_parts, replicated
from internvideo_jax.parallel.rules import (
    Rules,
    check_whole,
    param_shardings,
    state_shardings,
)
from internvideo_jax.protocols import Model, TeacherConfig
from internvideo_jax.run.parameters import Parametrisation
from internvideo_jax.types import (
    Leaf,
    Params,
    TrainState,
    Tree,
    flatten_paths,
    joined,
    path_name,
)

FROZEN = ("fsdp", "all", "none")  # config.mesh.frozen


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """Shapes and shardings of the train state, known before anything is allocated."""

    shapes: Tree  # a TrainState of jax.ShapeDtypeStruct
    shardings: Tree  # a TrainState of NamedSharding
    model: Tree  # NamedSharding of the parameters that the model runs with

    @property
    def params(self) -> Params:
        """Shapes of all parameters, learning or frozen."""
        return joined(self.shapes.params, self.shapes.frozen)

    @property
    def param_shardings(self) -> Tree:
        """Shardings of all parameters."""
        return joined(self.shardings.params, self.shardings.frozen)


@dataclasses.dataclass(frozen=True)
class FrozenPlan:
    """A network of the step that never learns: shapes and shardings before it is loaded.

    Weights of matrix products are in the network's dtype; norms, biases and positions, which take
    no memory, stay float32.
    """

    field: str  # config.objective.clip_teacher
    config: TeacherConfig
    model: Model
    shapes: Params  # jax.ShapeDtypeStruct
    shardings: Tree  # NamedSharding


def plan_frozen(config: TrainConfig, mesh: Mesh) -> Mapping[str, FrozenPlan]:
    """Plans of the frozen networks of the objective, by name of their field.

    They are split by their own sharding rules, over the axes that config.mesh.frozen says.

    Raises:
      ValueError: an axis that does not divide, or parameters that stay whole on a mesh meant to
        split them.
    """
    plans = {}
    for name, network in config.objective.networks().items():
        where = f"config.objective.{name}"
        model = network.model()
        shapes = jax.tree_util.tree_map_with_path(
            lambda path, leaf, dtype=network.dtype: jax.ShapeDtypeStruct(
                leaf.shape, dtype if path_name(path).endswith("kernel") else leaf.dtype
            ),
            model.shapes(),
        )
        try:
            shardings = _frozen_shardings(shapes, network.sharding_rules, mesh, config.mesh)
        except ValueError as error:
            raise ValueError(
                f"{where} with config.mesh.frozen = {config.mesh.frozen!r}: {error}"
            ) from error
        plans[name] = FrozenPlan(where, network, model, shapes, shardings)
    return plans


def _frozen_shardings(shapes: Params, rules: Rules, mesh: Mesh, config: MeshConfig) -> Any:
    if config.frozen not in FROZEN:
        raise ValueError(f"expected one of {', '.join(FROZEN)}")
    if config.frozen == "fsdp":
        shardings = param_shardings(shapes, rules, mesh, config.shard_above)
        check_whole(shapes, shardings, mesh, config.whole_limit)
        return shardings
    # Only what the rules say of tensor: no axis of this mesh splits anything else.
    parts = batch_parts(mesh)
    planned: Any = auto_mesh({"data": parts, "tensor": mesh.shape["tensor"]})
    shardings = param_shardings(shapes, rules, planned, config.shard_above)

    def place(path: Any, leaf: Leaf, sharding: NamedSharding) -> NamedSharding:
        spec = [*sharding.spec, *[None] * (len(leaf.shape) - len(sharding.spec))]
        if config.frozen == "all" and parts > 1 and leaf.size >= config.shard_above:
            found = _spread(leaf.shape, spec, mesh)
            if not found and leaf.size * leaf.dtype.itemsize > config.whole_limit:
                raise ValueError(
                    f"neither data nor fsdp of the mesh {dict(mesh.shape)} divides a dimension of "
                    f"{path_name(path)!r} {tuple(leaf.shape)}; choose other sizes, or allow it "
                    "with config.mesh.whole_limit"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, shapes, shardings)


def _spread(shape: tuple[int, ...], spec: list[Any], mesh: Mesh) -> bool:
    """Puts data and fsdp together, or the larger one that fits, on the largest free dimension.

    Not on the layers of a stack: a scan over them would gather all at once.
    """
    choices = sorted(
        (BATCH_AXES, *((axis,) for axis in BATCH_AXES)),
        key=lambda axes: -math.prod(mesh.shape[axis] for axis in axes),
    )
    for axes in choices:
        used = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        parts = math.prod(mesh.shape[axis] for axis in used)
        free = [
            axis
            for axis, size in enumerate(shape)
            if spec[axis] is None and size % parts == 0 and (axis or len(shape) < 3)
        ]
        if used and free:
            spec[max(free, key=lambda axis: shape[axis])] = used
            return True
    return False


def plan_state(
    config: TrainConfig,
    model: Model,
    parametrisation: Parametrisation,
    optimizer: Optimizer,
    mesh: Mesh,
) -> StatePlan:
    """Plans the state; ValueError where a sharding rule does not fit the mesh or splits nothing."""
    shapes = jax.eval_shape(
        lambda params: new_state(params, parametrisation, optimizer, config), model.shapes()
    )
    return StatePlan(shapes, *place_state(shapes, model, mesh, config.mesh))


def place_state(
    shapes: TrainState, model: Model, mesh: Mesh, config: MeshConfig, *, check: bool = True
) -> tuple[TrainState, Tree]:
    """Shardings of a train state of these shapes, and of the parameters that the model runs with.

    Adapters have no rules: large ones are split over `fsdp` as any other matrix.

    Raises:
      ValueError: a rule does not fit the mesh, or, with `check`, what is large stays whole.
    """
    params = model.shapes()
    sharded = param_shardings(params, model.config.sharding_rules, mesh, config.shard_above)
    if check:
        check_whole(params, sharded, mesh, config.whole_limit)
    adapters = {name: shapes.params[name] for name in shapes.params.keys() - params.keys()}
    general = param_shardings(adapters, (), mesh, config.shard_above)
    known = flatten_paths(sharded) | flatten_paths(general)

    def places(tree: Params) -> Tree:
        return map_paths(tree, lambda path, _: known[path])

    learning, whole = places(shapes.params), replicated(mesh)
    shardings = TrainState(
        step=whole,  # pyright: ignore[reportArgumentType]
        params=learning,
        opt_state=state_shardings(shapes.opt_state, shapes.params, learning, mesh),
        ema=None if shapes.ema is None else learning,
        nonfinite=whole,  # pyright: ignore[reportArgumentType]
        frozen=places(shapes.frozen),
    )
    return shardings, sharded


def new_state(
    params: Params,
    parametrisation: Parametrisation,
    optimizer: Optimizer,
    config: TrainConfig,
) -> TrainState:
    """State at step 0 around a model's parameters."""
    # Python numbers make weakly typed arrays. A step returns strong ones and would be compiled anew
    # for them at its second call.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), params)
    params, frozen = parametrisation.split(params, jax.random.key(config.seed))
    averaged = jax.tree.map(jnp.copy, params) if config.optim.ema_decay > 0 else None
    return TrainState(jnp.int32(0), params, optimizer.init(params), averaged, jnp.int32(0), frozen)
