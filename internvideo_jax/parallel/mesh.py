"""The device mesh, and the two ways to talk about it: a batch sharding and `constrain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from internvideo_jax.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the batch is split over both
# Tokens of a clip are split over this axis. Only a mesh that uses it has it: the programs of all
# others stay what they were.
SEQUENCE = "sequence"
ALL_AXES = ("data", "fsdp", SEQUENCE, "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all processes.

    Devices of several slices are joined along `data`, so that only the gradients cross the slow
    network between them. The number of slices is read from the devices; where these know none (CPUs
    in a rehearsal, GPUs), config.slices cuts the list of devices into as many equal parts.

    Axis types are written out because the default of `jax.make_mesh` is Explicit, under which
    matmuls with a sharded contraction raise.

    Args:
      devices: others than those of this job, such as the ones of a described topology.

    Raises:
      ValueError: the axes do not multiply to the number of devices, or the slices cannot be joined
        along `data`.
    """
    names = axes_of(config.sequence)
    sizes = [getattr(config, name) for name in names]
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    asked = dict(zip(names, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < -1 or size == 0 for size in sizes):
        raise ValueError(f"mesh axes must be positive, with at most one -1; found {asked}")
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if count % fixed or (-1 not in sizes and fixed != count):
        raise ValueError(
            f"the mesh {asked} asks for a multiple of {fixed} devices, found {count}; set "
            "config.mesh.data=-1 to let the batch axis take what is left"
        )
    found = {name: count // fixed if asked[name] == -1 else asked[name] for name in names}
    names = axes_of(found.get(SEQUENCE, 1))
    sizes = [found[name] for name in names]
    types = (AxisType.Auto,) * len(names)
    parts = slices_of(devices, config.slices)
    if len(parts) == 1:
        return jax.make_mesh(tuple(sizes), names, axis_types=types, devices=devices)
    return Mesh(join_slices(parts, *sizes), names, axis_types=types)


def axes_of(sequence: int) -> tuple[str, ...]:
    """Names of the axes of a mesh whose tokens are split over so many devices."""
    return AXES if sequence == 1 else ALL_AXES


def auto_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh without devices, of these sizes of ALL_AXES, 1 for those that are not named."""
    names = axes_of(sizes.get(SEQUENCE, 1))
    types = (AxisType.Auto,) * len(names)
    return AbstractMesh(tuple(sizes.get(name, 1) for name in names), names, axis_types=types)


def slices_of(devices: Sequence[Any], asked: int) -> list[list[Any]]:
    """The devices of each slice, in the order of the slices' numbers.

    Args:
      asked: expected number of slices, 0 for any.

    Raises:
      ValueError: the devices are of another number of slices, or of slices of different sizes.
    """
    known = {getattr(device, "slice_index", None) for device in devices}
    if known == {None}:
        size, rest = divmod(len(devices), max(asked, 1))
        if rest:
            raise ValueError(
                f"config.mesh.slices = {asked} cannot be made of {len(devices)} devices"
            )
        return [list(devices[i : i + size]) for i in range(0, len(devices), size)]
    numbers = sorted(number for number in known if number is not None)
    parts = [[d for d in devices if d.slice_index == number] for number in numbers]
    if asked and asked != len(parts):
        raise ValueError(
            f"config.mesh.slices = {asked}, the devices are of {len(parts)} slices; set it to 0 to "
            "take what is there, and check that every slice of the job has started"
        )
    sizes = [len(part) for part in parts]
    if len(set(sizes)) > 1:
        raise ValueError(f"the slices have {sizes} devices; expected slices of one size")
    return parts


def join_slices(parts: Sequence[Sequence[Any]], data: int, *others: int) -> np.ndarray:
    """Devices as (data, fsdp, tensor) or the axes asked for, slices one after another along `data`.

    Raises:
      ValueError: `data` is no multiple of the number of slices.
    """
    if data % len(parts):
        fitting = [n * len(parts) for n in range(1, len(parts[0]) + 1) if len(parts[0]) % n == 0]
        raise ValueError(
            f"the mesh axis data = {data} must be a multiple of the {len(parts)} slices, which are "
            f"joined along it; sizes that do: {fitting}. A slice has {len(parts[0])} devices for "
            "the other axes"
        )
    shape = (data // len(parts), *others)
    kind = getattr(parts[0][0], "device_kind", "")
    # As jax.make_mesh does: these slices are small tori whose axes may be cut.
    cut = "v5 lite" in kind.lower() or "v5e" in kind.lower()
    grids = [
        mesh_utils.create_device_mesh(shape, list(part), allow_split_physical_axes=cut)
        for part in parts
    ]
    return np.concatenate(grids)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


@dataclasses.dataclass(frozen=True)
class BatchShare:
    """Which part of every batch a process reads, of how many parts."""

    number: int = 0
    count: int = 1
    first: bool = True  # of the processes that read this part


def batch_share(mesh: Mesh) -> BatchShare:
    """The part of this process; processes whose devices have the same rows have the same part.

    That is where `sequence` or `tensor` reach over several processes.

    Raises:
      ValueError: the rows of two processes are the same in part only.
    """
    grid = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    rows: dict[int, frozenset[int]] = {}
    # The batch axes come first: a row of this matrix has all devices of one part of the batch.
    for part, processes in enumerate(grid.reshape(batch_parts(mesh), -1)):
        for process in processes.tolist():
            rows[process] = rows.get(process, frozenset()) | {part}
    groups = list(dict.fromkeys(rows[process] for process in sorted(rows)))
    if sum(map(len, groups)) != batch_parts(mesh):
        devices = mesh.size // len(rows)
        within = mesh.size // batch_parts(mesh)
        raise ValueError(
            f"{within} devices have the same examples (mesh sequence x tensor) and a process has "
            f"{devices} devices: two processes would have some examples in common and others not; "
            "expected one of the two numbers to divide the other"
        )
    own = rows[jax.process_index()]
    first = min(process for process in rows if rows[process] == own)
    return BatchShare(groups.index(own), len(groups), first == jax.process_index())


ALONE = BatchShare()


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Parts that the mesh splits a batch into."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def check_batch(mesh: Mesh, batch: int, what: str, microbatches: int = 1) -> None:
    """ValueError unless `batch` splits evenly over the batch axes of the mesh and microbatches."""
    devices = batch_parts(mesh)
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
      axes: for the leading axes of `x`, "batch", "tokens", "frames", a mesh axis, or None. Tokens
        are split over `sequence`, evenly or not, where there are as many as devices; frames, which
        are also counted together with the batch, where they divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    manual = set(mesh.manual_axes)  # inside shard_map these are already split by hand

    devices = mesh.shape.get(SEQUENCE, 1)

    def part(axis: str | None, size: int) -> tuple[str, ...] | None:
        names = BATCH_AXES if axis == "batch" else (axis,) if axis else ()
        if axis in ("tokens", "frames"):
            fits = size >= devices if axis == "tokens" else size % devices == 0
            names = (SEQUENCE,) if devices > 1 and fits else ()
        return tuple(name for name in names if name not in manual) or None

    spec = PartitionSpec(*(part(axis, size) for axis, size in zip(axes, x.shape, strict=False)))
    return jax.lax.with_sharding_constraint(x, spec)
