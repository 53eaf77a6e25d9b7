"""A stack of equal blocks: stacked parameters, one scanned body, remat by name, feature taps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.models.layers.block import Block, BlockConfig
from internvideo_jax.models.layers.init import Init
from internvideo_jax.parallel.mesh import constrain

# What the backward pass keeps of a layer; everything else is recomputed.
REMAT_POLICIES = {
    "none": None,  # keep everything
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # matmuls with weights
}


def stacked_blocks(
    config: BlockConfig, depth: int, *, init: Init, dtype: Any, rngs: nnx.Rngs
) -> Block:
    """`depth` blocks as one module whose parameters have a leading layer axis."""

    def build(key: jax.Array) -> Block:
        return Block(config, init=init, dtype=dtype, rngs=nnx.Rngs(params=key))

    keys = jax.random.split(rngs.params(), depth)
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))
    return nnx.merge(graph, jax.vmap(lambda key: nnx.split(build(key))[1])(keys))


def run_stack(
    blocks: Block,
    x: jax.Array,
    *,
    keys: jax.Array | None = None,
    drop_path: float = 0.0,
    remat: str = "none",
    scan: bool = True,
    taps: Sequence[int] = (),
) -> tuple[jax.Array, jax.Array | None]:
    """Runs stacked blocks.

    Args:
      blocks: from `stacked_blocks`.
      x: (B, N, D).
      keys: (B,) keys, one per example, for drop path; None in evaluation.
      drop_path: rate of the last layer; layer i of L has the share i / (L - 1).
      remat: name in REMAT_POLICIES.
      scan: False unrolls the loop over the same parameters (other compile time, same result).
      taps: layers whose outputs are returned too; only these are kept in memory.

    Returns:
      (B, N, D) after the last layer, and (len(taps), B, N, D) or None without taps.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"unknown remat policy {remat!r}; known: {', '.join(REMAT_POLICIES)}")
    graph, layers = nnx.split(blocks)
    depth = jax.tree.leaves(layers)[0].shape[0]
    rates = np.linspace(0.0, drop_path, depth, dtype=np.float32)
    dropping = keys is not None and drop_path > 0
    # Outputs of untapped layers go to one spare slot that is cut off at the end.
    slots = np.full(depth, len(taps), np.int32)
    for slot, layer in enumerate(taps):
        slots[range(depth)[layer]] = slot

    def body(carry, layer):
        x, tapped = carry
        params, index, rate, slot = layer
        layer_keys = None
        if dropping:
            layer_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        x = constrain(nnx.merge(graph, params)(x, layer_keys, rate), "batch")
        if tapped is not None:
            tapped = jax.lax.dynamic_update_index_in_dim(tapped, x, slot, axis=0)
        return (x, tapped), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    carry = (x, jnp.zeros((len(taps) + 1, *x.shape), x.dtype) if taps else None)
    inputs = (layers, np.arange(depth), rates, slots)
    if scan:
        carry, _ = jax.lax.scan(body, carry, inputs)
    else:
        for i in range(depth):
            carry, _ = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], inputs))
    x, tapped = carry
    return x, None if tapped is None else tapped[:-1]
