"""Does this recipe fit a slice, and how fast can it be at best? Compiles, runs nothing.

    python -m internvideo_jax.tools.compile_check --topology=v5e:16x16 --mesh=data=32,fsdp=8 \\
        --config=configs/videomae/pretrain.py:size=large --batch=2048 --records=240000

Needs neither the slice nor data. TPU slices (v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16) need the
TPU compiler, pip install 'internvideo-jax[tpu]'; cpu:8 is for rehearsals. Exit code 0: it fits,
1: it does not, 2: an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from internvideo_jax import cli
from internvideo_jax.build import Run, build
from internvideo_jax.config import MeshConfig, TrainConfig
from internvideo_jax.parallel.mesh import AXES
from internvideo_jax.registry import suggest
from internvideo_jax.tools.aot import (
    Check,
    check_step,
    gib,
    optimizer_bytes,
    ragged_shards,
    whole_parameters,
)
from internvideo_jax.tools.hardware import Slice, open_slice

CLASSES = 400  # of a classifier whose data set is not here: Kinetics-400


def parse_mesh(text: str, shard_above: int) -> MeshConfig:
    """`data=32,fsdp=8` -> MeshConfig; an axis not named is 1, `data` takes what is left.

    Raises:
      ValueError: an unknown axis or a size that is no number.
    """
    sizes = {"data": -1, "fsdp": 1, "tensor": 1}
    for item in filter(None, text.split(",")):
        name, _, size = item.partition("=")
        if name not in AXES:
            raise ValueError(f"--mesh: unknown axis {name!r}: {suggest(name, AXES)}")
        try:
            sizes[name] = int(size)
        except ValueError as error:
            raise ValueError(
                f"--mesh: expected a number for {name}, found {size!r}; write data=32,fsdp=8"
            ) from error
    return MeshConfig(**sizes, shard_above=shard_above)


def adjust(config: TrainConfig, *, mesh: str = "", batch: int = 0, remat: str = "") -> TrainConfig:
    """The config with another mesh, global batch or remat policy where given."""
    if mesh:
        given = parse_mesh(mesh, config.mesh.shard_above)
        kept = {"whole_limit": config.mesh.whole_limit, "slices": config.mesh.slices}
        config = dataclasses.replace(config, mesh=dataclasses.replace(given, **kept))
    if batch:
        data = dataclasses.replace(config.data, global_batch=batch)
        config = dataclasses.replace(config, data=data)
    if remat:
        if not hasattr(config.model, "remat"):
            raise ValueError(f"--remat={remat}: config.model has no remat policies")
        model = dataclasses.replace(config.model, remat=remat)
        config = dataclasses.replace(config, model=model)
    return config


def prepare(config: TrainConfig, target: Slice, records: int, classes: int) -> Run:
    """The pieces of the run on the devices of the slice.

    Without `records` an epoch is one step: enough to compile, of no use for the length.
    """
    return build(config, records or config.data.global_batch, classes, target.devices)


def report(run: Run, target: Slice, check: Check, *, length_known: bool) -> str:
    """The text that the command prints."""
    sections = [
        _what(run, target),
        _memory(run, target, check),
        _sharding(run),
        _flops(check),
        _collectives(check),
        _speed(run, target, check, length_known),
        _cost(check),
    ]
    return "\n".join(line for section in sections for line in section)


def _what(run: Run, target: Slice) -> list[str]:
    config, devices = run.config, len(target.devices)
    batch = config.data.global_batch
    params = sum(leaf.size for leaf in jax.tree.leaves(run.plan.shapes.params))
    micro = config.optim.accumulate
    hosts = target.hosts
    mesh = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    return [
        f"slice        {target.name}: {devices} x {kind_of(target)} on {hosts} "
        f"host{'s' if hosts > 1 else ''}; mesh {mesh}",
        f"batch        {batch} clips, {batch / devices:g} per chip"
        + (f", in {micro} microbatches" if micro > 1 else "")
        + f"; remat {getattr(config.model, 'remat', 'none')}",
        f"parameters   {params / 1e6:.1f} M; optimizer and average "
        f"{gib(optimizer_bytes(run))} over all chips",
    ]


def kind_of(target: Slice) -> str:
    return target.chip.kind if target.chip else "CPU"


def _memory(run: Run, target: Slice, check: Check) -> list[str]:
    chip, memory = target.chip, check.memory
    usable = f" of {gib(chip.hbm)} usable" if chip else " (CPU: no limit known)"
    if memory is None:
        return [
            f"memory       DOES NOT FIT: the compiler asks for {gib(check.needed)} of "
            f"temporaries{usable}; use a smaller batch, --remat=full, or a larger fsdp axis"
        ]
    verdict = "FITS" if check.fits(chip) else "DOES NOT FIT"
    return [
        f"memory       {verdict}: peak {gib(memory.peak)}{usable}; arguments "
        f"{gib(memory.arguments)}, temporaries {gib(memory.temporaries)} per chip"
    ]


def _sharding(run: Run) -> list[str]:
    lines = []
    for name, size in whole_parameters(run).items():
        lines.append(
            f"sharding     ERROR: {name} ({gib(size)}) is whole on every chip; choose an fsdp axis "
            "that divides one of its dimensions"
        )
    ragged = ragged_shards(run)
    if ragged:
        name, shard = next(iter(ragged.items()))
        lines.append(
            f"sharding     {len(ragged)} matrices have shards that are no whole 16 x 128 tiles, "
            f"such as {name} {shard}: they cost padding and transfers; a smaller axis avoids it"
        )
    return lines or ["sharding     no large parameter is whole, all shards are whole tiles"]


def _flops(check: Check) -> list[str]:
    extra = (
        f"; {check.unknown_loops} while loops counted as one pass" if check.unknown_loops else ""
    )
    return [
        f"FLOPs        model {check.model / 1e12:.4g} T per step, executed "
        f"{check.executed / 1e12:.4g} T: {check.executed / check.model:.3f} x{extra}"
    ]


def _collectives(check: Check) -> list[str]:
    if check.program is None:
        return [f"collectives  unavailable: {check.program_error}"]
    found = check.program.collectives
    if not found:
        return ["collectives  none"]
    lines = [f"collectives  {check.program.wire_bytes / 1e6:.1f} MB sent per chip and step"]
    for item in found:
        lines.append(
            f"  {item.kind:<19} {item.count:>5} x over {item.group:>4} chips, {item.dtype:<4} "
            f"{item.wire / 1e6:>10.2f} MB"
        )
    return lines


def _speed(run: Run, target: Slice, check: Check, length_known: bool) -> list[str]:
    chip, devices = target.chip, len(target.devices)
    if chip is None:
        return ["speed        not known: CPU devices say nothing about the speed of a chip"]
    if check.memory is None:
        return []
    line = check.roofline(chip, devices)
    limits = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in line.limits.items())
    lines = [f"bounds       {limits}: {line.binding} binds"]
    if check.program is None:
        lines.append("             (HBM and ICI unknown, since the program cannot be read)")
    else:
        traffic = check.program.hbm_bytes
        ridge = chip.flops / chip.hbm_rate
        lines.append(
            f"intensity    {check.executed / devices / max(traffic, 1.0):.0f} FLOPs per HBM byte "
            f"({traffic / 1e9:.1f} GB); {chip.kind} needs {ridge:.0f} to be compute-bound"
        )
        cycles = check.program.cycles / chip.clock
        lines.append(
            f"estimate     {cycles * 1e3:.1f} ms from the compiler's cycles, without "
            f"{check.program.unestimated} kernels and the collectives: to rank variants, no "
            "prediction"
        )
    batch, bound = run.config.data.global_batch, line.bound
    ceiling = check.model / devices / chip.flops / bound
    lines.append(
        f"at best      {bound * 1e3:.1f} ms per step, {batch / bound:.0f} clips/s "
        f"({batch / bound / devices:.1f} per chip), MFU {100 * ceiling:.1f} %"
    )
    if not length_known:
        return [*lines, "run          length unknown: give --records=N (clips of the data set)"]
    days = run.steps * bound / 86400
    return [
        *lines,
        f"run          {run.steps} steps: at best {days:.3g} days, {days * 24 * devices:.4g} "
        "chip-hours; evaluation, checkpoints and waiting for data come on top",
    ]


def _cost(check: Check) -> list[str]:
    return [
        f"compiled in  {check.compile_seconds:.1f} s (traced and lowered {check.lower_seconds:.1f} "
        f"s), {check.cpu_seconds:.1f} CPU s, {gib(check.host_bytes)} of host memory; "
        f"{versions()}",
        "not checked  on hardware; bounds assume peak rates and perfect overlap",
    ]


def versions() -> str:
    found = []
    for package in ("jax", "jaxlib", "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def row(run: Run, target: Slice, check: Check) -> dict[str, Any]:
    """The facts of one check as plain values, for tables."""
    memory, program = check.memory, check.program
    facts: dict[str, Any] = {
        "topology": target.name,
        "devices": len(target.devices),
        "mesh": dict(run.mesh.shape),
        "batch": run.config.data.global_batch,
        "remat": getattr(run.config.model, "remat", None),
        "steps": run.steps,
        "fits": check.fits(target.chip),
        "memory": None if memory is None else dataclasses.asdict(memory),
        "needed": check.needed,
        "model_flops": check.model,
        "executed_flops": check.executed,
        "wire_bytes": None if program is None else program.wire_bytes,
        "hbm_bytes": None if program is None else program.hbm_bytes,
        "compile_seconds": check.compile_seconds,
        "cpu_seconds": check.cpu_seconds,
        "versions": versions(),
    }
    if target.chip is not None and memory is not None:
        line = check.roofline(target.chip, len(target.devices))
        facts |= {"seconds": line.limits, "bound": line.bound, "binding": line.binding}
    return facts


def main() -> None:
    flags.adopt_module_key_flags(cli)
    topology = flags.DEFINE_string("topology", None, "v5e:16x16, v4:4x4x4, v5p:..., cpu:8")
    mesh = flags.DEFINE_string("mesh", "", "data=32,fsdp=8,tensor=1; default: that of the config")
    batch = flags.DEFINE_integer("batch", 0, "Clips per step over all chips")
    remat = flags.DEFINE_string("remat", "", "Remat policy of the model: none, full, dots")
    records = flags.DEFINE_integer("records", 0, "Clips of the data set, for the length of the run")
    classes = flags.DEFINE_integer("classes", CLASSES, "Classes of a classifier's data set")
    fast = flags.DEFINE_bool("fast", False, "Compile with fewer optimizations: half the time")
    output = flags.DEFINE_string("json", "", "Write the facts to this file as well")

    def run() -> int:
        if not topology.value:
            raise ValueError("no --topology given; for example --topology=v5e:16x16 or cpu:8")
        config = adjust(cli.typed_config(), mesh=mesh.value, batch=batch.value, remat=remat.value)
        target = open_slice(topology.value)
        planned = prepare(config, target, records.value, classes.value)
        check = check_step(planned, target, fast=fast.value)
        known = bool(records.value) or config.steps > 0
        print(report(planned, target, check, length_known=known), flush=True)
        if output.value:
            facts = row(planned, target, check)
            Path(output.value).write_text(json.dumps(facts, indent=2) + "\n")
        return 0 if check.fits(target.chip) and not whole_parameters(planned) else 1

    cli.run(run)


if __name__ == "__main__":
    main()
