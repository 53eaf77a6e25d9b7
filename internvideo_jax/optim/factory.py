"""AdamW from a config: weight-decay mask, layer-wise rates, freezing, clipping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from internvideo_jax.config import OptimConfig
from internvideo_jax.ops.lora import ADAPTERS
from internvideo_jax.optim.bert_adam import scale_by_bert_adam
from internvideo_jax.optim.head_grid import check_grid, head_chain
from internvideo_jax.optim.schedules import Schedule
from internvideo_jax.types import (
    HeadGrid,
    Leaf,
    Params,
    Tree,
    flatten_paths,
    matching,
    path_name,
    unflatten_paths,
)

# Matmul weights. Everything else is free of weight decay by name: the rank would not tell, since
# stacked biases have two axes.
DECAYED = ("kernel",)
# The lowest layer: what turns pixels and positions into tokens.
EMBEDDINGS = ("patch_embed", "pos_embed", "mask_token", "cls_token")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`update` applies one step; the learning rate is a function of the run's step."""

    transform: optax.GradientTransformation
    schedule: Schedule
    frozen: frozenset[str]  # paths without gradient or optimizer state
    config: OptimConfig
    held: Params | None = None  # 0 for layers of config.freeze_layers, else 1; None without any

    def init(self, params: Params) -> Any:
        """The state before the first step."""
        return self.transform.init(params)

    def stop_frozen(self, params: Params) -> Params:
        """Cuts the gradient of frozen parameters, so that the backward pass skips them."""
        if not self.frozen:
            return params
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                jax.lax.stop_gradient(leaf) if path_name(path) in self.frozen else leaf
            ),
            params,
        )

    def update(
        self, gradients: Params, state: Tree, params: Params, step: jax.Array
    ) -> tuple[Params, Any, dict[str, jax.Array]]:
        """Returns (parameters, optimizer state, {"lr", "grad_norm"}) after one step."""
        rate = jnp.asarray(self.schedule(step), jnp.float32)
        if self.held is not None:  # before the norm: what is not trained is not clipped for
            gradients = scale_updates(gradients, self.held)
        norm = optax.global_norm(gradients)
        direction, state = self.transform.update(gradients, state, params)
        params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        return params, state, {"lr": rate, "grad_norm": norm}


def make_optimizer(
    config: OptimConfig,
    shapes: Params,
    schedule: Schedule,
    grid: HeadGrid | None = None,
    apart: Collection[str] = (),
) -> Optimizer:
    """Builds the optimizer for parameters of these shapes.

    Args:
      grid: heads with rates and decays of their own; nothing else is trained then.
      apart: paths of further parameters of the model, which are frozen.

    Raises:
      ValueError: a pattern that matches nothing, layer decay without its stack, an unknown
        algorithm.
    """
    paths = flatten_paths(shapes)
    everything = [*paths, *apart]
    frozen = matching("config.optim.freeze", config.freeze, everything) | {*apart}
    also = config.decay_also if config.weight_decay or grid is not None else ()
    decayed = matching("config.optim.decay_also", also, everything)
    held, scales = held_layers(config, shapes), layer_scales(config, shapes, apart)
    if grid is not None:
        check_grid(grid, config, paths)
        frozen |= {path for path in paths if not path.startswith(grid.prefix)}
    chain = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity(),
        _moments(config),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask(shapes, decayed)),
    ]
    if scales is not None:
        chain.append(optax.stateless(lambda updates, _: scale_updates(updates, scales)))
    if grid is not None:
        chain = head_chain(grid, config.clip_norm, _moments(config), decay_mask(shapes, decayed))
    transform = optax.chain(*chain)
    if frozen:
        labels = map_paths(shapes, lambda path, _: "frozen" if path in frozen else "trained")
        transform = optax.multi_transform(
            {"trained": transform, "frozen": optax.set_to_zero()}, labels
        )
    return Optimizer(transform, schedule, frozen, config, held)


def _moments(config: OptimConfig) -> optax.GradientTransformation:
    if config.algorithm == "adamw":
        return optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.algorithm == "bert_adam":
        return scale_by_bert_adam(config.b1, config.b2, config.eps)
    raise ValueError(
        f"unknown config.optim.algorithm {config.algorithm!r}; known: adamw, bert_adam"
    )


def scale_updates(updates: Tree, scales: Params) -> Params:
    """Updates times their factors; what freezing masked out is passed through.

    A factor of 0 gives +0 for every update, so that the parameter keeps its bits.
    """

    def masked(node: object) -> bool:
        return isinstance(node, optax.MaskedNode)

    def scaled(update: jax.Array, scale: np.ndarray) -> Any:
        if masked(update):
            return update
        product = update * jnp.asarray(scale, update.dtype)
        return product if np.all(scale) else jnp.where(scale == 0, 0, product)

    return jax.tree.map(scaled, updates, scales, is_leaf=masked)


def decay_mask(shapes: Params, also: Collection[str] = ()) -> Params:
    """Tree of bools: which parameters weight decay pulls towards zero; `also` names more paths."""
    return map_paths(shapes, lambda path, _: path.rsplit("/", 1)[-1] in DECAYED or path in also)


def layer_scales(config: OptimConfig, shapes: Params, apart: Collection[str] = ()) -> Params | None:
    """Factor on the learning rate per parameter; for the stack a vector over its layers.

    With L layers: embeddings decay^(L+1), layer i decay^(L-i), everything after the stack 1, and so
    what config.layer_decay_free names. Layers of config.freeze_layers have 0. Adapters have the
    factors of their kernels.

    Args:
      apart: paths of further parameters, which patterns may name.

    Returns:
      Tree of numpy arrays that broadcast to the parameters, or None without layer decay and frozen
      layers.
    """
    if config.layer_decay == 1.0 and not config.freeze_layers:
        return None
    spared = config.layer_decay_free if config.layer_decay != 1.0 else ()
    free = matching("config.optim.layer_decay_free", spared, [*flatten_paths(shapes), *apart])
    prefix, depth = config.layer_stack + "/", _stack_depth(config, shapes)
    values = layer_values(config.layer_decay, depth)
    values[1 : 1 + config.freeze_layers] = 0.0

    def scale(path: str, leaf: Leaf) -> np.ndarray:
        path = path.removeprefix(f"{ADAPTERS}/")
        if path.startswith(prefix):
            return values[1 : depth + 1].reshape(depth, *[1] * (len(leaf.shape) - 1))
        if any(part in EMBEDDINGS for part in path.split("/")) and path not in free:
            return values[:1].reshape(())
        return values[-1:].reshape(())

    return map_paths(shapes, scale)


def held_layers(config: OptimConfig, shapes: Params) -> Params | None:
    """1, and 0 for layers of config.freeze_layers, to broadcast to the parameters; None: no such.

    Raises:
      ValueError: more layers than there are, or all.
    """
    if not config.freeze_layers:
        return None
    depth = _stack_depth(config, shapes)
    if not 0 < config.freeze_layers < depth:
        raise ValueError(
            f"config.optim.freeze_layers = {config.freeze_layers}: {config.layer_stack!r} has "
            f"{depth} layers, expected fewer; to freeze all give config.optim.freeze the pattern "
            f"'^{config.layer_stack}/', which skips their backward pass too"
        )
    kept = layer_scales(dataclasses.replace(config, layer_decay=1.0), shapes)
    assert kept is not None  # noqa: S101  (some layers are frozen)
    return kept


def _stack_depth(config: OptimConfig, shapes: Params) -> int:
    """Layers of config.layer_stack; ValueError when there is no such stack."""
    prefix = config.layer_stack + "/"
    depths = {
        leaf.shape[0]
        for path, leaf in flatten_paths(shapes).items()
        if path.removeprefix(f"{ADAPTERS}/").startswith(prefix)
    }
    if len(depths) != 1:
        asked = (
            f"freeze_layers = {config.freeze_layers}"
            if config.freeze_layers
            else f"layer_decay = {config.layer_decay}"
        )
        raise ValueError(
            f"config.optim.{asked} needs one stack of layers at "
            f"{config.layer_stack!r} (config.optim.layer_stack), found none"
        )
    return depths.pop()


def layer_values(decay: float, depth: int) -> np.ndarray:
    """(depth + 2,) factors from the embeddings up to the head, float64."""
    return decay ** np.arange(depth + 1, -1, -1, dtype=np.float64)


def map_paths(tree: Params, function: Callable[[str, Any], Any]) -> Params:
    """Tree of `function(path, leaf)`."""
    return unflatten_paths(
        {path: function(path, leaf) for path, leaf in flatten_paths(tree).items()}
    )
