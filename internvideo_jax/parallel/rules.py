"""Path patterns -> PartitionSpec, for parameters and everything shaped like them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax.parallel.mesh import batch_parts
from internvideo_jax.types import (
    Leaf,
    Tree,
    flatten_paths,
    path_name,
)

# A spec has one entry per dimension, or begins with `...` and is for the last dimensions.
Rules = Sequence[tuple[str, tuple[Any, ...]]]

UNMATCHED_LIMIT = 1 << 20  # bytes of optimizer state that may stay whole on every device
TILE = (16, 128)  # of a bfloat16 matrix on a TPU


def param_shardings(shapes: Tree, rules: Rules, mesh: Mesh, shard_above: int) -> Any:
    """Sharding of every parameter, from the rule whose pattern is found in its path.

    A large array that no rule names is split over `fsdp` along its largest dimension that divides.

    Raises:
      ValueError: two rules that want different things of one parameter, a rule of the wrong rank,
        or an axis that does not divide the dimension.
    """

    def one(path: tuple[Any, ...], leaf: Leaf) -> NamedSharding:
        name = path_name(path)
        spec = _spec(name, leaf.shape, rules)
        if spec is None:
            spec = _largest_dimension(leaf.shape, mesh, shard_above)
        elif int(np.prod(leaf.shape)) < shard_above:
            spec = ()
        _check_divides(name, leaf.shape, spec, mesh)
        # Axes of size 1 split nothing; without them the printed table says what really happens.
        used = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec]
        while used and used[-1] is None:
            used.pop()
        return NamedSharding(mesh, PartitionSpec(*used))

    return jax.tree_util.tree_map_with_path(one, shapes)


def _spec(name: str, shape: tuple[int, ...], rules: Rules) -> tuple[str | None, ...] | None:
    """What the rules say of one parameter, an entry per dimension; None where they say nothing."""
    found: dict[str, tuple[str | None, ...]] = {}
    for pattern, spec in rules:
        if not re.search(pattern, name):
            continue
        tail = spec[1:] if spec[:1] == (...,) else spec
        missing = len(shape) - len(tail)
        if missing < 0 or (missing and tail is spec):
            raise ValueError(f"sharding rule {spec} does not fit {name!r} of shape {tuple(shape)}")
        found[pattern] = (None,) * missing + tuple(tail)
    if len(set(found.values())) > 1:
        told = "; ".join(f"{pattern!r} says {spec}" for pattern, spec in found.items())
        raise ValueError(
            f"sharding rules contradict each other for {name!r} {tuple(shape)}: {told}. Narrow a "
            "pattern of the model's sharding_rules until one of them is left"
        )
    return next(iter(found.values()), None)


def idle_rules(shapes: Tree, rules: Rules) -> list[str]:
    """Patterns that are found in no path: a misspelt one would leave its parameters whole."""
    paths = list(flatten_paths(shapes))
    return [pattern for pattern, _ in rules if not any(re.search(pattern, p) for p in paths)]


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
            possible = [n for n in fitting if mesh.size % n == 0]
            raise ValueError(
                f"mesh axis {axis} = {mesh.shape[axis]} does not divide a dimension of {size} in "
                f"{name!r} {tuple(shape)}; sizes that do: {fitting}; on {mesh.size} devices set "
                f"config.mesh.{axis} to one of {possible}"
            )


def whole_parameters(shapes: Tree, shardings: Tree, mesh: Mesh, limit: int) -> dict[str, int]:
    """Parameters of more than `limit` bytes that no axis splits although the mesh has one: bytes.

    Empty on a mesh that is not meant to split parameters.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return {}
    placed = flatten_paths(shardings)
    sizes = {
        name: leaf.size * leaf.dtype.itemsize
        for name, leaf in flatten_paths(shapes).items()
        if placed[name].is_fully_replicated
    }
    return {name: size for name, size in sizes.items() if size > limit}


def check_whole(shapes: Tree, shardings: Tree, mesh: Mesh, limit: int) -> None:
    """ValueError for `whole_parameters`, with the fsdp sizes that would split all of them."""
    whole = whole_parameters(shapes, shardings, mesh, limit)
    if not whole:
        return
    leaves = flatten_paths(shapes)
    parts = batch_parts(mesh)  # of the devices, those that fsdp may have
    fitting = [
        n
        for n in range(2, parts + 1)
        if parts % n == 0
        and all(any(size % n == 0 for size in leaves[name].shape) for name in whole)
    ]
    listed = ", ".join(
        f"{name} {tuple(leaves[name].shape)} {size / 2**20:.1f} MiB" for name, size in whole.items()
    )
    if fitting:
        sizes = ", ".join(map(str, fitting))
        advice = (
            f"on these {mesh.size} devices config.mesh.fsdp = {sizes} splits "
            f"{'it' if len(whole) == 1 else 'them'} (with config.mesh.data=-1)"
        )
    else:
        advice = f"no fsdp size on these {mesh.size} devices divides a dimension of each of them"
    raise ValueError(
        f"the mesh {dict(mesh.shape)} is meant to split parameters but leaves whole on every "
        f"device: {listed}; {advice}, or allow it with "
        f"config.mesh.whole_limit={max(whole.values())}"
    )


def ragged_shards(shapes: Tree, shardings: Tree) -> dict[str, tuple[int, ...]]:
    """Split matrices whose shards are no whole tiles (16 x 128 in bfloat16): shard shapes.

    The TPU compiler pads such shards and moves rows between devices at every gather.
    """
    found = {}
    placed = flatten_paths(shardings)
    for name, leaf in flatten_paths(shapes).items():
        shard = placed[name].shard_shape(leaf.shape)
        tile = (1,) * (len(shard) - 2) + TILE
        split = np.not_equal(shard, leaf.shape)
        if len(shard) >= 2 and np.any(split & (np.remainder(shard, tile) > 0)):
            found[name] = shard
    return found


def sharding_notes(shapes: Tree, shardings: Tree, rules: Rules, mesh: Mesh) -> list[str]:
    """What a person should know before the first step, a line each; often nothing.

    Shards that are no whole tiles are told on TPUs only, where tiles exist.
    """
    notes = [
        f"sharding rule {pattern!r} matches no parameter of this model"
        for pattern in idle_rules(shapes, rules)
    ]
    ragged = ragged_shards(shapes, shardings) if mesh.devices.flat[0].platform == "tpu" else {}
    if ragged:
        name, shard = next(iter(ragged.items()))
        notes.append(
            f"{len(ragged)} matrices have shards that are no whole {TILE[0]} x {TILE[1]} tiles, "
            f"such as {name} {shard}: they cost padding and transfers; a smaller axis avoids it"
        )
    return notes


def state_shardings(shapes: Tree, params: Tree, shardings: Tree, mesh: Mesh) -> Any:
    """Shardings of optimizer state and averages from those of the parameters.

    A leaf belongs to the parameter with the longest path that ends the leaf's own path and has its
    shape; what belongs to none is replicated.

    Raises:
      ValueError: an unmatched leaf larger than UNMATCHED_LIMIT, whole on every device.
    """
    known = flatten_paths(params)
    target = flatten_paths(shardings)

    def one(path: tuple[Any, ...], leaf: Leaf) -> NamedSharding:
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


def bytes_per_device(shapes: Tree, shardings: Tree) -> int:
    """Bytes that one device holds of a tree."""
    total = 0
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        total += int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return total
