"""The table of parameters, shardings and memory that a run prints before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from clu import parameter_overview

from internvideo_jax.parallel.rules import bytes_per_device
from internvideo_jax.protocols import FrozenNetwork
from internvideo_jax.types import Tree


def parameter_table(shapes: Tree, shardings: Tree) -> str:
    """Name, shape, dtype, size and sharding of every parameter."""
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return parameter_overview.get_parameter_overview(placed, include_stats="sharding")


def frozen_table(network: FrozenNetwork) -> str:
    """The table of a frozen network."""
    count = sum(leaf.size for leaf in jax.tree.leaves(network.shapes))
    return (
        f"{network.field}: {network.config.name}, {count / 1e6:.1f} M frozen parameters\n"
        f"{parameter_table(network.shapes, network.shardings)}"
    )


def memory_estimate(
    shapes: Tree, shardings: Tree, batch_bytes: int, frozen: Sequence[tuple[Tree, Tree]] = ()
) -> str:
    """What the state and one batch take on a device, activations not included.

    Args:
      shapes, shardings: of the whole train state.
      batch_bytes: of the global batch on the wire.
      frozen: shapes and shardings of each network that does not learn.
    """
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    held = bytes_per_device(shapes, shardings)
    devices = len(jax.tree.leaves(shardings)[0].device_set)
    networks = sum(bytes_per_device(*network) for network in frozen)
    teachers = f"frozen networks {networks / 2**20:.1f} MiB, " if frozen else ""
    return (
        f"per device: parameters, optimizer and average {held / 2**20:.1f} MiB "
        f"(all {whole / 2**20:.1f} MiB on {devices} device{'s' if devices > 1 else ''}), "
        f"{teachers}batch {batch_bytes / devices / 2**20:.1f} MiB; activations come on top"
    )
