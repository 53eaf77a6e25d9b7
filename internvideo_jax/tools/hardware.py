"""Accelerators and slices that are not here: their numbers, and their devices as the compiler sees
them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from internvideo_jax.registry import suggest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a slice. Rates are published peaks; the links of v4 are unconfirmed."""

    kind: str
    flops: float  # bfloat16 operations per second
    hbm: float  # bytes a program may use, as the compiler states them when it refuses one
    hbm_rate: float  # bytes per second
    ici_rate: float  # bytes per second that leave the chip with every link busy
    clock: float  # Hz, for cycle estimates
    rank: int  # dimensions of a slice
    largest: int  # chips of a pod
    config: str = ""  # chip_config_name of the compiler


CHIPS = {
    # v4 without megacore would show two devices for every chip.
    "v4": Chip("TPU v4", 275e12, 30.75 * GIB, 1228e9, 300e9, 1.05e9, 3, 4096, "megacore"),
    "v5e": Chip("TPU v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 1.5e9, 2, 256),
    "v5p": Chip("TPU v5p", 459e12, 95.73 * GIB, 2765e9, 600e9, 1.75e9, 3, 8960),
    "v6e": Chip("TPU v6e", 918e12, 31.24 * GIB, 1638e9, 400e9, 1.75e9, 2, 256),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for."""

    name: str
    chip: Chip | None  # None: CPU devices, whose speed says nothing about a chip
    devices: tuple[Any, ...]

    @property
    def hosts(self) -> int:
        return len({device.process_index for device in self.devices})


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """`v5e:16x16` -> ("v5e", (16, 16)); `cpu:8` -> ("cpu", (8,)).

    Raises:
      ValueError: unknown chip, or a slice that the chip does not come in.
    """
    kind, _, text = name.partition(":")
    known = [*CHIPS, "cpu"]
    if kind not in known:
        raise ValueError(f"--topology: unknown chip {kind!r}: {suggest(kind, known)}")
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    rank = 1 if kind == "cpu" else CHIPS[kind].rank
    if len(shape) != rank or min(shape, default=0) < 1:
        form = {1: "cpu:8", 2: f"{kind}:4x4", 3: f"{kind}:2x2x2"}[rank]
        raise ValueError(
            f"--topology={name}: expected {rank} positive number{'s' if rank > 1 else ''} after "
            f"the colon, as in {form}"
        )
    largest = CHIPS[kind].largest if kind in CHIPS else 1024
    if int(np.prod(shape)) > largest:
        raise ValueError(
            f"--topology={name} has {int(np.prod(shape))} chips; a {kind} pod has {largest}"
        )
    return kind, shape


def open_slice(name: str) -> Slice:
    """The devices of a topology. Must run before anything else asks jax for devices.

    Raises:
      ValueError: a slice that does not exist.
      RuntimeError: the TPU compiler is missing or held by another process.
    """
    import jax  # here, since what starts a job elsewhere needs only the numbers above

    kind, shape = parse_topology(name)
    # An accelerator of this machine is left alone: constants are made on the CPU.
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        jax.config.update("jax_num_cpu_devices", shape[0])
        return Slice(name, None, tuple(jax.devices()[: shape[0]]))
    # No metadata server is asked what this machine is, and compilers may run side by side.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else libtpu warns at length
    chip = CHIPS[kind]
    options: Mapping[str, str] = {"chip_config_name": chip.config} if chip.config else {}
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        raise _explain(name, error) from error
    return Slice(name, chip, tuple(described.devices))


def _explain(name: str, error: Exception) -> ValueError | RuntimeError:
    """The compiler's message with what to do about it."""
    text = str(error)
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if "lockfile" in text:
        return RuntimeError(
            "another process holds the TPU compiler; set ALLOW_MULTIPLE_LIBTPU_LOAD=1 for both, "
            f"or wait for it ({first})"
        )
    if "not divisible" in text or "Invalid TPU" in text:
        return ValueError(f"--topology={name}: there is no such slice ({first})")
    return RuntimeError(
        f"the TPU compiler cannot be loaded; pip install 'internvideo-jax[tpu]' ({first})"
    )
