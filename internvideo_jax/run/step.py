"""Making the train state and the jitted train step, for any model and objective."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from internvideo_jax.optim.ema import update_ema
from internvideo_jax.parallel.mesh import batch_sharding, constrain, replicated
from internvideo_jax.parallel.microbatch import (
    Differentiated,
    cached_value_and_gradient,
    value_and_gradient,
)
from internvideo_jax.protocols import Model
from internvideo_jax.run.build import Run
from internvideo_jax.run.state import new_state
from internvideo_jax.tasks import Objective
from internvideo_jax.types import (
    Batch,
    Params,
    TrainState,
    Tree,
    flatten_paths,
    joined,
    unflatten_paths,
)

Networks = Mapping[str, tuple[Model, Params]]  # frozen ones, by field of the objective


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A jitted step on a mesh: (state, batch) -> (state, metrics), metrics on the device."""

    jitted: Any
    mesh: Mesh
    # Parameters of frozen networks, an argument of the program like the state; shapes of them
    # where the step is traced only.
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        # `constrain` inside the models reads the mesh from this context while tracing.
        with jax.set_mesh(self.mesh):
            return self.jitted(state, batch, self.frozen)

    def trace(self, state: Tree, batch: Tree) -> Any:
        """The step traced for these shapes (`jax.ShapeDtypeStruct` suffice)."""
        with jax.set_mesh(self.mesh):
            return self.jitted.trace(state, batch, self.frozen)

    def lower(self, state: Tree, batch: Tree) -> Any:
        """The step lowered for these shapes, not yet compiled."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(state, batch, self.frozen)

    def text(self, run: Run, batch: Tree) -> str:
        """The compiled program for a batch. Compiles anew where no compilation cache has it."""
        state = placed(run.plan.shapes, run.plan.shardings)
        return self.lower(state, batch).compile().as_text()


def placed(shapes: Tree, shardings: Tree) -> Any:
    """Shapes that know their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def draw_key(seed: int) -> jax.Array:
    """Key of everything that a run draws per example: masks, drop path, mixing.

    Parameters took the seed itself; what is drawn has its own stream.
    """
    return jax.random.fold_in(jax.random.key(seed), 1)


def init_state(run: Run) -> TrainState:
    """Fresh state, created directly in its shards.

    The output shardings matter: without them jit would put the optimizer's moments on one device.
    """
    create = jax.jit(
        lambda key: new_state(run.model.init(key), run.parametrisation, run.optimizer, run.config),
        out_shardings=run.plan.shardings,
    )
    return create(jax.random.key(run.config.seed))


def state_from(run: Run, params: Params) -> TrainState:
    """State at step 0 around given parameters of the model (host arrays or sharded ones)."""
    params = jax.tree.map(jax.device_put, params, run.plan.model)
    create = jax.jit(
        lambda params: new_state(params, run.parametrisation, run.optimizer, run.config),
        out_shardings=run.plan.shardings,
    )
    return create(params)


def _differentiate(
    run: Run, key: jax.Array, state: TrainState, batch: Batch, networks: Networks
) -> Differentiated:
    """Loss, gradient, metrics and updates of a batch, in microbatches where the run wants them."""
    optim, objective = run.config.optim, run.objective

    def whole(params: Params) -> Params:
        return run.parametrisation.whole(run.optimizer.stop_frozen(params), state.frozen)

    def loss_fn(objective: Objective, params: Params, part: Batch) -> Any:
        params = whole(params)
        if networks:
            made = jax.lax.stop_gradient(run.objective.targets(networks, part, key))
            # Split as if they had come with the batch. Without this the step on CPU devices,
            # with microbatches and all three axes, gave another loss than on one device.
            made = jax.tree.map(lambda x: constrain(x, "batch"), made)
            part = {**part, **made}
        return objective.loss(run.model, params, part, key, state.step)

    def embed(params: Params, part: Batch) -> Any:
        return objective.embed(run.model, whole(params), part, key, state.step)

    def compare(params: Params, embeddings: Tree, rows: Batch) -> Any:
        return objective.compare(whole(params), embeddings, rows)

    if optim.accumulate > 1 and objective.across:
        rest = objective.beside
        return cached_value_and_gradient(
            embed,
            compare,
            state.params,
            batch,
            optim.accumulate,
            None if rest is None else functools.partial(loss_fn, rest),
        )
    full = functools.partial(loss_fn, objective)
    return value_and_gradient(full, state.params, batch, optim.accumulate)


def _projected(run: Run, params: Params, frozen: Params) -> Params:
    """Parameters that learn, in their bounds, which the objective knows of the model's only."""
    if not frozen:
        return run.objective.project(params)
    found = flatten_paths(run.objective.project(joined(params, frozen)))
    return unflatten_paths({path: found[path] for path in flatten_paths(params)})


def _updated(params: Params, updates: Mapping[str, jax.Array]) -> Params:
    flat = flatten_paths(params)
    if frozen := sorted(updates.keys() - flat.keys()):
        raise ValueError(
            f"training gives {frozen[0]} new values, but it is frozen; let it learn with "
            f"--config.lora.train=\"('^{frozen[0]}$',)\""
        )
    return unflatten_paths(flat | dict(updates))


def make_train_step(run: Run, frozen: Mapping[str, Params] | None = None) -> TrainStep:
    """One optimizer step: loss, gradient, update, average, non-finite guard.

    An objective whose loss compares the examples of a batch (`across`) goes through gradient
    caching where there are microbatches. Frozen networks (teachers) look at each microbatch first,
    and what they make of it joins it.

    The state is donated. A step whose loss or gradient norm is not finite changes nothing but the
    step number and the counter `nonfinite`.

    Args:
      frozen: parameters of `run.frozen`, see checkpoint/frozen.py; None: the step can be traced and
        compiled, not run.
    """
    optim, optimizer = run.config.optim, run.optimizer
    key = draw_key(run.config.seed)

    def train_step(
        state: TrainState, batch: Batch, frozen: Mapping[str, Params]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        networks = {name: (plan.model, frozen[name]) for name, plan in run.frozen.items()}
        loss, gradients, metrics, updates = _differentiate(run, key, state, batch, networks)
        params, opt_state, report = optimizer.update(
            gradients, state.opt_state, state.params, state.step
        )
        params = _projected(run, params, state.frozen)
        if updates:  # no gradient reaches them, so the optimizer left them as they were
            params = _updated(params, updates)
        averaged = state.ema
        if averaged is not None:
            averaged = update_ema(
                averaged, params, optim.ema_decay, state.step, ramp=optim.ema_ramp
            )
        finite = jnp.isfinite(loss) & jnp.isfinite(report["grad_norm"])
        params, opt_state, averaged = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, averaged),
            (state.params, state.opt_state, state.ema),
        )
        nonfinite = state.nonfinite + jnp.where(finite, 0, 1).astype(jnp.int32)
        metrics = {"loss": loss, **metrics, **report, "nonfinite": nonfinite}
        return (
            TrainState(state.step + 1, params, opt_state, averaged, nonfinite, state.frozen),
            {f"train/{name}": value for name, value in metrics.items()},
        )

    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(
            run.plan.shardings,
            batch_sharding(run.mesh),
            {name: plan.shardings for name, plan in run.frozen.items()},
        ),
        out_shardings=(run.plan.shardings, replicated(run.mesh)),
    )
    if frozen is None:
        frozen = {name: placed(plan.shapes, plan.shardings) for name, plan in run.frozen.items()}
    return TrainStep(jitted, run.mesh, frozen)
