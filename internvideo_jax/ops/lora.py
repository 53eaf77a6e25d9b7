"""Low-rank adapters as a transformation of a parameter tree (LoRA, Hu et al. 2021, section 4.1).

A kernel (..., in, out) gets `a` (..., in, rank) and `b` (..., rank, out) and acts as
kernel + scale * a @ b; leading axes are layers, or queries, keys and values, that one array holds
side by side, each with an adapter of its own. No layer knows of it: the
kernels of a step are made anew from the adapters, which costs a product of the kernel's size and
room for one copy of the adapted kernels and of their gradients, while moments are those of `a` and
`b` only. There is no dropout on the way into `a`, which a transformation of parameters cannot have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.types import Leaf, Params, flatten_paths, unflatten_paths

ADAPTERS = "lora"  # the subtree of adapters: lora/PATH OF THE KERNEL/{a,b}


def scale(rank: int, alpha: float) -> float:
    """Factor of a @ b: alpha / rank; an alpha of 0 means `rank`."""
    return (alpha or rank) / rank


def init(key: jax.Array, kernels: Mapping[str, Leaf], rank: int) -> Params:
    """Fresh adapters, float32, which change nothing: `b` is zero.

    `a` is uniform in ± 1 / sqrt(in), as a linear layer of torch begins, and as in PEFT.

    Args:
      kernels: arrays or shapes, by path.

    Raises:
      ValueError: a parameter that is no kernel.
    """
    adapters: dict[str, jax.Array] = {}
    for number, (path, leaf) in enumerate(sorted(kernels.items())):
        if not path.endswith("kernel") or len(leaf.shape) < 2:
            raise ValueError(
                f"{path} {tuple(leaf.shape)} gets no adapter: expected a kernel (..., in, out)"
            )
        *stack, rows, columns = leaf.shape
        bound = 1.0 / math.sqrt(rows)
        own = jax.random.fold_in(key, number)
        shape = (*stack, rows, rank)
        adapters[f"{path}/a"] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
        adapters[f"{path}/b"] = jnp.zeros((*stack, rank, columns))
    return unflatten_paths(adapters)


def merge(params: Params, factor: float) -> Params:
    """Parameters of the model: adapters added to their kernels, in float32, and gone.

    Args:
      params: with the subtree `lora`; arrays of jax or of numpy.
      factor: see `scale`.
    """
    base = {name: value for name, value in params.items() if name != ADAPTERS}
    return unflatten_paths(merge_flat(flatten_paths(base), flatten_paths(params[ADAPTERS]), factor))


def merge_flat(
    base: Mapping[str, Any], adapters: Mapping[str, Any], factor: float
) -> dict[str, Any]:
    """As `merge`, by path; the adapters' paths without `lora/`."""
    merged = dict(base)
    for path in {path.rsplit("/", 1)[0] for path in adapters}:
        change = adapters[f"{path}/a"] @ adapters[f"{path}/b"]
        merged[path] = base[path].astype(np.float32) + np.float32(factor) * change
    return merged
