"""Compiling the train step of a run for devices that are not here, and what that tells."""

from __future__ import annotations

import dataclasses
import re
import resource
import time
from typing import Any

import jax

from data_pipelines.stream.parts.made import batch_spec, media_of
from internvideo_jax.compile_check import flops
from internvideo_jax.compile_check.hardware import GIB, Chip, Slice
from internvideo_jax.compile_check.program import CompiledProgram, read_program
from internvideo_jax.config import TrainConfig
from internvideo_jax.ops import attention
from internvideo_jax.parallel import rules
from internvideo_jax.parallel.mesh import batch_sharding
from internvideo_jax.parallel.rules import bytes_per_device
from internvideo_jax.run.build import Run
from internvideo_jax.run.step import make_train_step, placed

# Two forms, of temporaries and of the whole program.
OUT_OF_MEMORY = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. `peak` is the compiler's; arguments are state and batch."""

    arguments: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Least seconds of one step by each limit, as if the others did not exist and nothing waited.

    `hbm` and `ici` are None where the program's text cannot be read or the rate is not known.
    """

    compute: float  # executed FLOPs at the peak rate of their numbers
    hbm: float | None
    ici: float | None

    @property
    def limits(self) -> dict[str, float]:
        """Name -> seconds, of those that are known."""
        found = {"compute": self.compute, "HBM": self.hbm, "ICI": self.ici}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def bound(self) -> float:
        """Seconds no step can be faster than: the three overlap perfectly."""
        return max(self.limits.values())

    @property
    def binding(self) -> str:
        """The name of the longest."""
        return max(self.limits, key=lambda name: self.limits[name])


@dataclasses.dataclass(frozen=True)
class Check:
    """What compiling a step told."""

    memory: Memory | None  # None: it does not fit, or no compiler for it runs here
    needed: float  # bytes the compiler asked for when it refused, else 0
    executed: float  # FLOPs of one step on all devices, from the jaxpr
    model: float  # FLOPs of one step, from the model's configuration; no frozen networks
    unknown_loops: int
    program: CompiledProgram | None
    program_error: str
    lower_seconds: float
    compile_seconds: float
    cpu_seconds: float
    host_bytes: int  # largest resident set of this process so far
    arguments: int = 0  # bytes of state, frozen networks and batch on one device
    frozen: float = 0.0  # FLOPs of the frozen networks in one step, from their configurations
    attention: str = ""  # form and reason of every attention in the step
    media: str = ""  # media type of the step
    int8: float = 0.0  # of the executed FLOPs, products of two operands of int8
    fp8: float = 0.0  # or of float8

    def fits(self, chip: Chip | None) -> bool:
        """Whether it compiled and its peak fits into the memory of the chip."""
        return self.memory is not None and (chip is None or self.memory.peak <= chip.hbm)

    def unknown(self, target: Slice) -> bool:
        """Nothing could be compiled, and what is known of the memory does not rule it out."""
        return not target.compiles and target.chip is not None and self.arguments <= target.chip.hbm

    def roofline(self, chip: Chip, devices: int) -> Roofline:
        """Least seconds of a step on so many devices, by what limits them."""
        program = self.program
        wide = (self.executed - self.int8 - self.fp8) / chip.flops
        eight = self.int8 / (chip.int8 or chip.flops) + self.fp8 / (chip.fp8 or chip.flops)
        return Roofline(
            (wide + eight) / devices,
            None if program is None else program.hbm_bytes / chip.hbm_rate,
            None if program is None or not chip.ici_rate else program.wire_bytes / chip.ici_rate,
        )


def batch_shapes(
    config: TrainConfig, mesh: jax.sharding.Mesh, media: str = ""
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the training stream: shapes, element types and shardings.

    Args:
      media: media type of the step; empty: the first of the stream.
    """
    media, sharding = media or media_of(config.data)[0], batch_sharding(mesh)
    spec = dict(batch_spec(config.data, media))
    spec |= config.objective.cached_shapes(config.model)
    rows = config.data.batch_of(media)
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in spec.items()
    }


def argument_bytes(run: Run, media: str = "") -> int:
    """Bytes of state, frozen networks and batch on one device; tiles are not padded."""
    batch = batch_shapes(run.config, run.mesh, media)
    shardings = {name: leaf.sharding for name, leaf in batch.items()}
    state = bytes_per_device(run.plan.shapes, run.plan.shardings)
    return state + frozen_bytes(run) + bytes_per_device(batch, shardings)


def frozen_bytes(run: Run) -> int:
    """Bytes of the frozen networks on one device, from the shardings."""
    return sum(bytes_per_device(plan.shapes, plan.shardings) for plan in run.frozen.values())


def count_flops(run: Run) -> flops.Flops:
    """What one step executes on all devices, from its trace; compiles nothing."""
    return flops.count(_trace(run).jaxpr)


def _trace(run: Run, media: str = "") -> Any:
    step = make_train_step(run)  # makes constants, which must not land on the described devices
    state = placed(run.plan.shapes, run.plan.shardings)
    return step.trace(state, batch_shapes(run.config, run.mesh, media))


def check_steps(run: Run, target: Slice, *, fast: bool = False) -> list[Check]:
    """`check_step` for every media type of the stream: their steps are programs of their own."""
    kinds = media_of(run.config.data)
    return [check_step(run, target, fast=fast, media=media) for media in kinds]


def check_step(run: Run, target: Slice, *, fast: bool = False, media: str = "") -> Check:
    """Traces, lowers and compiles the train step of `run`, whose mesh is made of `target`.

    For GPUs it is only traced, since their compiler does not run without one.

    Args:
      media: media type of the step; empty: the first of the stream.
      fast: a lower optimization level, which takes about half the time; memory and collectives
        are nearly the same, cycle estimates can differ.

    Raises:
      RuntimeError: the compiler failed for another reason than memory.
    """
    media = media or media_of(run.config.data)[0]
    cpu, started = time.process_time(), time.perf_counter()
    with attention.recording() as sites:
        traced = _trace(run, media)
    counted = flops.count(traced.jaxpr)
    lowered = traced.lower() if target.compiles else None
    lower_seconds = time.perf_counter() - started
    options: Any = {"optimization_level": 1} if fast and target.chip else None
    started, compiled, needed = time.perf_counter(), None, 0.0
    try:
        compiled = lowered.compile(compiler_options=options) if lowered else None
    except jax.errors.JaxRuntimeError as error:
        needed = asked_for(str(error))
        if not needed:
            first = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"the compiler failed on this step ({first}); another mesh, batch or remat policy "
                "may compile"
            ) from error
    compile_seconds = time.perf_counter() - started
    memory, program, problem = None, None, "it was not compiled"
    if compiled is not None:
        memory = _memory(compiled.memory_analysis())
        try:
            program, problem = read_program(compiled.as_text(), len(target.devices)), ""
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            problem = str(error).strip().splitlines()[0][:160]
    known = run.config.data.batch_of(media) * _as_configured(run.config, media)
    return Check(
        memory=memory,
        needed=needed,
        executed=counted.total,
        model=run.flops * known,
        unknown_loops=counted.unknown_loops,
        program=program,
        program_error=problem,
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
        cpu_seconds=time.process_time() - cpu,
        host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        arguments=argument_bytes(run, media),
        frozen=run.frozen_flops * known,
        attention=attention.summary(sites),
        media=media,
        int8=counted.int8,
        fp8=counted.fp8,
    )


def _as_configured(config: TrainConfig, media: str) -> bool:
    """Whether the model's own figures are of the clips of a media type, or of longer ones."""
    takes = config.model.inputs.clip
    frames = config.data.clip_of(media).frames
    return takes is None or frames == takes.frames * takes.stride


def asked_for(message: str) -> float:
    """Bytes that the compiler asked for in vain; 0 when its message is of something else."""
    found = OUT_OF_MEMORY.search(message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return 0.0
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return float(number) * UNITS[unit]


def _memory(stats: Any) -> Memory:
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    peak = stats.peak_memory_in_bytes
    if peak < max(arguments, temporaries):  # XLA on CPU gives another quantity under that name
        peak = arguments + temporaries + fresh
    return Memory(arguments, temporaries, peak)


def whole_parameters(run: Run) -> dict[str, int]:
    """Parameters above config.mesh.whole_limit bytes that no axis splits: bytes."""
    limit = run.config.mesh.whole_limit
    return rules.whole_parameters(run.plan.params, run.plan.param_shardings, run.mesh, limit)


def ragged_shards(run: Run) -> dict[str, tuple[int, ...]]:
    """Split matrices whose shards are no whole tiles: shard shapes."""
    return rules.ragged_shards(run.plan.params, run.plan.param_shardings)


def optimizer_bytes(run: Run) -> int:
    """Of all devices together, the averaged parameters included."""
    leaves = jax.tree.leaves((run.plan.shapes.opt_state, run.plan.shapes.ema))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def gib(value: float) -> str:
    """Bytes in GiB, as text."""
    return f"{value / GIB:.2f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:.2f} MiB"
