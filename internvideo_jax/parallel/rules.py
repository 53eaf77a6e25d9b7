"""Path patterns -> PartitionSpec, for parameters and everything shaped like them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax.types import flatten_paths, path_name

Rules = Sequence[tuple[str, tuple[str | None, ...]]]

UNMATCHED_LIMIT = 1 << 20  # bytes of optimizer state that may stay whole on every device


def param_shardings(shapes: Any, rules: Rules, mesh: Mesh, shard_above: int) -> Any:
    """Sharding of every parameter: the first rule whose pattern is found in its path decides.

    A large array that no rule names is split over `fsdp` along its largest dimension that divides.

    Raises:
      ValueError: a rule of the wrong rank, or an axis that does not divide the dimension.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None or int(np.prod(leaf.shape)) < shard_above:
            spec = _largest_dimension(leaf.shape, mesh, shard_above) if spec is None else ()
        elif len(spec) != len(leaf.shape):
            raise ValueError(
                f"sharding rule {spec} does not fit {name!r} of shape {tuple(leaf.shape)}"
            )
        _check_divides(name, leaf.shape, spec, mesh)
        # Axes of size 1 split nothing; without them the printed table says what really happens.
        used = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec]
        while used and used[-1] is None:
            used.pop()
        return NamedSharding(mesh, PartitionSpec(*used))

    return jax.tree_util.tree_map_with_path(one, shapes)


def _largest_dimension(
    shape: tuple[int, ...], mesh: Mesh, shard_above: int
) -> tuple[str | None, ...]:
    parts = mesh.shape["fsdp"]
    if parts == 1 or int(np.prod(shape)) < shard_above:
        return ()
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if not fitting:
        return ()
    best = max(fitting, key=lambda axis: shape[axis])
    return tuple("fsdp" if axis == best else None for axis in range(len(shape)))


def _check_divides(
    name: str, shape: tuple[int, ...], spec: tuple[str | None, ...], mesh: Mesh
) -> None:
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            fitting = [n for n in range(1, mesh.shape[axis] + 1) if size % n == 0]
            raise ValueError(
                f"mesh axis {axis} = {mesh.shape[axis]} does not divide a dimension of {size} in "
                f"{name!r} {tuple(shape)}; sizes that do: {fitting}"
            )


def state_shardings(shapes: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of optimizer state and averages from those of the parameters.

    A leaf belongs to the parameter with the longest path that ends the leaf's own path and has its
    shape; what belongs to none is replicated.

    Raises:
      ValueError: an unmatched leaf larger than UNMATCHED_LIMIT, whole on every device.
    """
    known = flatten_paths(params)
    target = flatten_paths(shardings)

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in known and known[name].shape == leaf.shape:
                return target[name]
        size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        if size > UNMATCHED_LIMIT:
            raise ValueError(
                f"optimizer state {'/'.join(parts)} {leaf.shape} ({size / 2**20:.1f} MiB) belongs "
                "to no parameter and would be whole on every device"
            )
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, shapes)


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """Bytes that one device holds of a tree."""
    total = 0
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        total += int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return total
