"""Accelerators and slices that are not here: their numbers, and their devices as the compiler sees
them."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import os
from typing import Any

from internvideo_jax.registry import suggest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a slice, and how many of them make a chip. Rates are published peaks; the links
    of v4 are unconfirmed."""

    kind: str
    flops: float  # bfloat16 operations per second
    hbm: float  # bytes a program may use, as the compiler states them when it refuses one
    hbm_rate: float  # bytes per second
    ici_rate: float  # bytes per second that leave the device with every link busy; 0: not known
    clock: float  # Hz, for cycle estimates; 0: not known
    rank: int  # dimensions of a slice
    largest: int  # chips of the largest slice
    config: str = ""  # chip_config_name of the compiler
    cores: int = 1  # devices of a chip
    platform: str = "tpu"
    # Operations per second with operands of 8 bits; 0: none, or none published. v5e, v6e and fp8 of
    # TPU7x: docs.cloud.google.com/tpu/docs/{v5e,v6e,tpu7x}, which gives fp8 of v5p and v6e the rate
    # of bfloat16. v4, v5p: the tables of jax-ml.github.io/scaling-book/tpus. GPUs: as others quote
    # the data sheets of A100, H100 and H200, half of what these state with sparsity.
    int8: float = 0.0
    fp8: float = 0.0


CHIPS = {
    # v4 without megacore would show two devices for every chip.
    "v4": Chip(
        "TPU v4", 275e12, 30.75 * GIB, 1228e9, 300e9, 1.05e9, 3, 4096, "megacore", int8=275e12
    ),
    "v5e": Chip("TPU v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 1.5e9, 2, 256, int8=393e12),
    "v5p": Chip("TPU v5p", 459e12, 95.73 * GIB, 2765e9, 600e9, 1.75e9, 3, 6144, int8=918e12),
    "v6e": Chip("TPU v6e", 918e12, 31.24 * GIB, 1638e9, 400e9, 1.75e9, 2, 256, int8=1836e12),
    # Two devices a chip, each with half of the chip's published 2307 TF/s, 7380 GB/s and 600 GB/s
    # one way. The clock is not published.
    "tpu7x": Chip(
        "TPU7x", 1153.5e12, 94.74 * GIB, 3690e9, 300e9, 0.0, 3, 9216, cores=2, fp8=2307e12
    ),
}
_H100 = Chip(
    "H100 SXM", 989e12, 80e9, 3350e9, 450e9, 0.0, 1, 1024,
    platform="gpu", int8=1979e12, fp8=1979e12,
)  # fmt: skip
# Published peaks without sparsity, all of the memory, NVLink one way inside a host of eight.
GPUS = {
    "a100": Chip(
        "A100 80GB", 312e12, 80e9, 2039e9, 300e9, 0.0, 1, 1024, platform="gpu", int8=624e12
    ),
    "h100": _H100,
    "h200": dataclasses.replace(_H100, kind="H200 SXM", hbm=141e9, hbm_rate=4800e9),
}
GPUS_OF_A_HOST = 8
BOARD = 4  # TPU chips
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # less than a cube of 4 x 4 x 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for."""

    name: str
    chip: Chip | None  # None: CPU devices, whose speed says nothing about a chip
    devices: tuple[Any, ...]
    stand_ins: bool = False  # devices are those of the CPU, in the places of a TPU's

    @property
    def hosts(self) -> int:
        """Number of machines."""
        if self.chip is not None and self.chip.platform == "gpu":
            return math.ceil(len(self.devices) / GPUS_OF_A_HOST)
        if self.stand_ins:
            single, slices = split_slices(self.name)
            return self.chips // (slices * chips_per_host(parse_topology(single)[1])) * slices
        slices = (getattr(device, "slice_index", 0) for device in self.devices)
        places = zip(slices, (device.process_index for device in self.devices), strict=True)
        return len(set(places))

    @property
    def chips(self) -> int:
        """Number of chips; some have two devices each."""
        return len(self.devices) // (self.chip.cores if self.chip else 1)

    @property
    def compiles(self) -> bool:
        """False for GPUs, as no compiler for them runs without one, and for stand-ins."""
        return self.chip is None or (self.chip.platform == "tpu" and not self.stand_ins)


def chips_per_host(shape: tuple[int, ...]) -> int:
    """Chips of one TPU VM of a slice: a board of four; of v5e and v6e, up to 2x4 is one VM."""
    chips = math.prod(shape)
    return chips if chips <= 2 * BOARD and len(shape) == 2 else BOARD


def offered(kind: str) -> list[tuple[int, ...]]:
    """Shapes of the slices of a TPU: the published ones, and every torus of 4 x 4 x 4 cubes."""
    chip = CHIPS[kind]
    if chip.rank == 2:
        return list(FLAT)
    sides = range(4, chip.largest // 16 + 1, 4)
    cubes = itertools.combinations_with_replacement(sides, 3)
    return [*SMALL, *(shape for shape in cubes if math.prod(shape) <= chip.largest)]


def parse_topology(name: str, flag: str = "--topology") -> tuple[str, tuple[int, ...]]:
    """`v5e:16x16` -> ("v5e", (16, 16)); `cpu:8` -> ("cpu", (8,)); `gpu:h100x8` -> ("h100", (8,)).

    Args:
      flag: what errors call it.

    Raises:
      ValueError: unknown chip, or a slice that the chip does not come in.
    """
    kind, _, text = name.partition(":")
    known = [*CHIPS, "cpu", "gpu"]
    if kind == "gpu":
        kind, _, text = text.partition("x")
        known = list(GPUS)
        if kind not in known:
            raise ValueError(
                f"{flag}: unknown GPU {kind!r}: {suggest(kind, known)}; write gpu:h100x8"
            )
    if kind not in known:
        raise ValueError(f"{flag}: unknown chip {kind!r}: {suggest(kind, known)}")
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    rank = CHIPS[kind].rank if kind in CHIPS else 1
    if len(shape) != rank or min(shape, default=0) < 1:
        form = {1: "cpu:8", 2: f"{kind}:4x4", 3: f"{kind}:2x2x2"}[rank]
        form = f"gpu:{kind}x8" if kind in GPUS else form
        raise ValueError(
            f"{flag}={name}: expected {rank} positive number{'s' if rank > 1 else ''} after "
            f"the {'chip' if kind in GPUS else 'colon'}, as in {form}"
        )
    count = math.prod(shape)
    largest = CHIPS[kind].largest if kind in CHIPS else 1024
    if count > largest:
        what = f"the largest {kind} slice" if kind in CHIPS else "this check"
        raise ValueError(f"{flag}={name} has {count} chips; {what} has {largest}")
    if kind in CHIPS and shape not in offered(kind):
        raise ValueError(f"{flag}={name}: there is no such slice; {_nearest(kind, shape)}")
    return kind, shape


def _nearest(kind: str, shape: tuple[int, ...]) -> str:
    shapes = offered(kind)
    turned = [known for known in shapes if sorted(known) == sorted(shape)]

    def distance(known: tuple[int, ...]) -> tuple[float, float]:
        sizes = abs(math.log(math.prod(known) / math.prod(shape)))
        sides = zip(sorted(known), sorted(shape), strict=True)
        return sizes, sum(abs(math.log(a / b)) for a, b in sides)

    best = turned or sorted(shapes, key=distance)[:2]
    named = (f"{kind}:{'x'.join(map(str, s))} ({math.prod(s)} chips)" for s in best)
    return f"the nearest {'is' if len(best) == 1 else 'are'} {' and '.join(named)}"


def split_slices(name: str) -> tuple[str, int]:
    """`v5e:16x16*2` -> ("v5e:16x16", 2): two slices that a data centre's network joins.

    Raises:
      ValueError: the part behind the star is no positive number, or not of a TPU.
    """
    name, star, text = name.partition("*")
    if not star:
        return name, 1
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"--topology: expected a number of slices after the star, found {text!r}")
    if name.partition(":")[0] not in CHIPS:
        raise ValueError(f"--topology: only TPU slices can be several, found {name}*{text}")
    return name, int(text)


def open_slice(name: str, *, stand_ins: bool = False) -> Slice:
    """The devices of a topology. Must run before anything else asks jax for devices.

    Args:
      stand_ins: CPU devices in the places of a TPU's: no compiler is needed, and none asked.

    Raises:
      ValueError: a slice that does not exist.
      RuntimeError: the TPU compiler is missing or held by another process.
    """
    import jax  # here, since what starts a job elsewhere needs only the numbers above

    single, slices = split_slices(name)
    kind, shape = parse_topology(single)
    # An accelerator of this machine is left alone: constants are made on the CPU.
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu" or kind in GPUS:  # CPU devices stand for the places of GPUs
        jax.config.update("jax_num_cpu_devices", shape[0])
        return Slice(name, GPUS.get(kind), tuple(jax.devices()[: shape[0]]))
    if stand_ins:
        count = math.prod(shape) * slices * CHIPS[kind].cores
        jax.config.update("jax_num_cpu_devices", count)
        return Slice(name, CHIPS[kind], tuple(jax.devices()[:count]), stand_ins=True)
    # No metadata server is asked what this machine is, and compilers may run side by side.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else libtpu warns at length
    chip = CHIPS[kind]
    options: dict[str, Any] = {"chip_config_name": chip.config} if chip.config else {}
    if slices > 1:
        options["num_slices"] = slices
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=single, **options)
    except Exception as error:
        raise explain(name, error) from error
    devices = tuple(described.devices)
    expected = math.prod(shape) * slices * chip.cores
    if len(devices) != expected:
        raise RuntimeError(
            f"--topology={name}: the compiler shows {len(devices)} devices, expected {expected}; "
            "this version of libtpu counts other devices per chip"
        )
    return Slice(name, chip, devices)


def explain(name: str, error: Exception) -> ValueError | RuntimeError:
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
    if importlib.util.find_spec("libtpu") is None:
        return RuntimeError(
            f"the TPU compiler cannot be loaded; pip install 'internvideo-jax[tpu]' ({first})"
        )
    return RuntimeError(f"the TPU compiler does not describe {name}: {first}")
