"""The device mesh, and the two ways to talk about it: a batch sharding and `constrain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from internvideo_jax.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the batch is split over both


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all processes.

    Axis types are written out because the default of `jax.make_mesh` is Explicit, under which
    matmuls with a sharded contraction raise.

    Args:
      devices: others than those of this job, such as the ones of a described topology.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    count = jax.device_count() if devices is None else len(devices)
    asked = dict(zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < -1 or size == 0 for size in sizes):
        raise ValueError(f"mesh axes must be positive, with at most one -1; found {asked}")
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if count % fixed or (-1 not in sizes and fixed != count):
        raise ValueError(
            f"the mesh {asked} asks for a multiple of {fixed} devices, found {count}; set "
            "config.mesh.data=-1 to let the batch axis take what is left"
        )
    sizes = [count // fixed if size == -1 else size for size in sizes]
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch: int, what: str, microbatches: int = 1) -> None:
    """ValueError unless `batch` splits evenly over the batch axes of the mesh and microbatches."""
    devices = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    parts = devices * microbatches
    if batch < 1 or batch % parts:
        near = max(parts, batch // parts * parts)
        micro = f" x {microbatches} microbatches" if microbatches > 1 else ""
        raise ValueError(
            f"{what} = {batch} cannot be split evenly over {devices} devices (mesh data x fsdp)"
            f"{micro}; the nearest sizes are {near} and {near + parts}"
        )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the sharding of an activation; does nothing without a mesh.

    Args:
      axes: for the leading axes of `x`, "batch", a mesh axis, or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    manual = set(mesh.manual_axes)  # inside shard_map these are already split by hand

    def part(axis: str | None) -> tuple[str, ...] | None:
        names = BATCH_AXES if axis == "batch" else (axis,) if axis else ()
        return tuple(name for name in names if name not in manual) or None

    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(part(axis) for axis in axes)))
