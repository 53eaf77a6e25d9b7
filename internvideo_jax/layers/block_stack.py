"""A stack of equal blocks: stacked parameters, one scanned body, remat by name, intermediates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.layers.block import NOTHING, Beside, Block, BlockConfig
from internvideo_jax.layers.init import Init, draws
from internvideo_jax.ops.attention import Cache
from internvideo_jax.ops.blocked_attention import RESIDUALS
from internvideo_jax.parallel.mesh import constrain
from internvideo_jax.registry import suggest
from internvideo_jax.types import Tree

Module = TypeVar("Module", bound=nnx.Module)

_save_attention = jax.checkpoint_policies.save_only_these_names(RESIDUALS)
# What the backward pass keeps of a layer besides its input; everything else is recomputed.
REMAT_POLICIES = {
    "none": None,  # everything
    "full": jax.checkpoint_policies.nothing_saveable,
    # Queries, keys, values and the output of attention: fused attention does not run again.
    "attention": _save_attention,
    # These and the outputs of all matmuls with weights.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        _save_attention, jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}


def check_remat(name: str, where: str = "config.model.remat") -> None:
    """ValueError with the near matches for a policy that does not exist."""
    if name not in REMAT_POLICIES:
        raise ValueError(f"{where}: unknown remat policy {name!r}: {suggest(name, REMAT_POLICIES)}")


def stacked_blocks(
    config: BlockConfig, depth: int, *, init: Init, dtype: np.dtype, rngs: nnx.Rngs
) -> Block:
    """`depth` blocks as one module whose parameters have a leading layer axis."""
    blocks = stacked(lambda rngs: Block(config, init=init, dtype=dtype, rngs=rngs), depth, rngs)
    if init.by_depth:
        factors = (2.0 * np.arange(1, depth + 1, dtype=np.float32)) ** -0.5
        for kernel in (blocks.attn.proj.kernel, blocks.mlp.fc2.kernel):
            kernel[...] = kernel[...] * factors[:, None, None]
    return blocks


def stacked(build: Callable[[nnx.Rngs], Module], depth: int, rngs: nnx.Rngs) -> Module:
    """`depth` modules that `build` makes, as one whose arrays have a leading layer axis."""
    graphs = []

    def arrays(key: jax.Array) -> nnx.State:
        graph, state = nnx.split(build(draws(key)))
        graphs.append(graph)
        return state

    state = jax.vmap(arrays)(jax.random.split(rngs.params(), depth))
    return nnx.merge(graphs[0], state)


def layer(blocks: Module, index: int) -> Module:
    """One of the modules that `stacked` put together; -1 is the last."""
    graph, arrays = nnx.split(blocks)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[index], arrays))


def run_stack(
    blocks: Block,
    x: jax.Array,
    *,
    keys: jax.Array | None = None,
    drop_path: float = 0.0,
    remat: str = "none",
    scan: bool = True,
    intermediate_layers: Sequence[int] = (),
    axes: Sequence[str] = ("batch",),
    beside: Beside | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs stacked blocks.

    Args:
      blocks: from `stacked_blocks`.
      x: (B, N, D).
      keys: (B,) keys, one per example, for drop path and dropout; None in evaluation.
      drop_path: rate of the last layer; layer i of L has the share i / (L - 1).
      remat: name in REMAT_POLICIES.
      scan: False unrolls the loop over the same parameters (other compile time, same result).
      intermediate_layers: layers whose outputs are returned too; only these are kept in memory.
      axes: what the leading axes of `x` are, as `constrain` takes them: between two layers a mesh
        splits them accordingly.
      beside: masks, bias and context that all layers share; None: nothing.

    Returns:
      (B, N, D) after the last layer, and (len(intermediate_layers), B, N, D) or None without any.
    """
    keys = keys if drop_path > 0 or blocks.draws else None
    shared = () if beside is None else (beside,)
    x, intermediates, _ = run_layers(
        blocks,
        x,
        shared=shared,
        keys=keys,
        drop_path=drop_path,
        remat=remat,
        scan=scan,
        intermediate_layers=intermediate_layers,
        axes=axes,
    )
    return x, intermediates


def step_stack(
    blocks: Block, x: jax.Array, caches: Cache, beside: Beside = NOTHING
) -> tuple[jax.Array, Cache]:
    """Runs stacked blocks on tokens behind those whose keys are cached.

    Args:
      x: (B, N, D) the next tokens.
      caches: of all layers, on a leading axis.
      beside: what all layers share; its mask and bias are of the positions of a cache.

    Returns:
      (B, N, D) after the last layer, and the longer caches.
    """
    graph, layers = nnx.split(blocks)

    def body(x: jax.Array, layer: tuple[Any, Cache]) -> tuple[jax.Array, Cache]:
        x, cache = nnx.merge(graph, layer[0]).step(x, layer[1], beside)
        return constrain(x, "batch"), cache

    return jax.lax.scan(body, x, (layers, caches))


def run_layers(
    blocks: nnx.Module,
    x: jax.Array,
    *,
    inputs: Tree = (),
    shared: Tree = (),
    keys: jax.Array | None = None,
    drop_path: float = 0.0,
    remat: str = "none",
    scan: bool = True,
    intermediate_layers: Sequence[int] = (),
    axes: Sequence[str] = ("batch",),
) -> tuple[jax.Array, jax.Array | None, Any]:
    """`run_stack` for blocks of any kind, called as `block(x, keys, rate, *inputs,
    *shared)`.

    Args:
      blocks: from `stacked`; a block returns its output, or the pair (output, report).
      x: (B, ..., D).
      inputs: arrays with a leading layer axis; a layer gets its own part of each.
      shared: what every layer gets whole, as the output of an encoder; gradients of all add up.
      keys: (B,) keys, given to every layer with its number folded in; None in evaluation.

    Returns:
      As `run_stack`, and the reports of the layers stacked on a leading axis (None without any).
    """
    check_remat(remat)
    graph, layers = nnx.split(blocks)
    depth = jax.tree.leaves(layers)[0].shape[0]
    rates = np.linspace(0.0, drop_path, depth, dtype=np.float32)
    # Outputs of other layers go to one spare slot that is cut off at the end.
    slots = np.full(depth, len(intermediate_layers), np.int32)
    for slot, layer in enumerate(intermediate_layers):
        slots[range(depth)[layer]] = slot

    def body(carry, layer):
        x, intermediates = carry
        params, index, rate, slot, given = layer
        layer_keys = None
        if keys is not None:
            layer_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        result = nnx.merge(graph, params)(x, layer_keys, rate, *given, *shared)
        x, report = result if isinstance(result, tuple) else (result, None)
        x = constrain(x, *axes)
        if intermediates is not None:
            intermediates = jax.lax.dynamic_update_index_in_dim(intermediates, x, slot, axis=0)
        return (x, intermediates), report

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    carry = (
        x,
        jnp.zeros((len(intermediate_layers) + 1, *x.shape), x.dtype)
        if intermediate_layers
        else None,
    )
    each = (layers, np.arange(depth), rates, slots, tuple(inputs))
    if scan:
        carry, reports = jax.lax.scan(body, carry, each)
    else:
        rows = []
        for i in range(depth):
            carry, report = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], each))
            rows.append(report)
        reports = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    x, intermediates = carry
    return x, None if intermediates is None else intermediates[:-1], reports
