"""What the compile check says about one step: text for a person, plain values for a table."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any

import jax

from data_pipelines.stream.parts.made import media_of
from internvideo_jax.compile_check.aot import (
    Check,
    frozen_bytes,
    gib,
    optimizer_bytes,
    ragged_shards,
    whole_parameters,
)
from internvideo_jax.compile_check.hardware import GPUS_OF_A_HOST, Slice
from internvideo_jax.compile_check.length import duration
from internvideo_jax.parallel.mesh import SEQUENCE, batch_parts
from internvideo_jax.run.build import Run

# One all-gather of more than this share of the parameters, and of more bytes than are allowed to be
# whole anyway, holds a good part of the model at once. In a stack of layers, scanned or not, the
# largest is one matrix of one layer, forward and backward.
GATHERED_LIMIT = 0.1
GATHERED_BYTES = 64 * 2**20


def report(
    run: Run,
    target: Slice,
    check: Check,
    *,
    length_known: bool,
    length: str = "",
    price: float = 0.0,
) -> str:
    """The text that the command prints.

    Args:
      length: where the number of clips is from, when it was not given.
      price: of one chip-hour, in any currency; 0: not known.
    """
    sections = [
        _what(run, target, check.media),
        _memory(run, target, check),
        _sharding(run),
        _flops(target, check),
        _collectives(run, target, check),
        _speed(target, check),
        _best(run, target, check),
        _run(run, target, check, length_known, length, price),
        _cost(target, check),
    ]
    return "\n".join(line for section in sections for line in section)


def _what(run: Run, target: Slice, media: str) -> list[str]:
    config, devices, chips = run.config, len(target.devices), target.chips
    batch = config.data.batch_of(media)
    params = sum(leaf.size for leaf in jax.tree.leaves(run.plan.params))
    micro = config.optim.accumulate
    hosts = target.hosts
    mesh = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    cores = f" = {devices} devices" if devices > chips else ""
    return [
        f"slice        {target.name}: {chips} x {kind_of(target)}{cores} on {hosts} "
        f"host{'s' if hosts > 1 else ''}; mesh {mesh}",
        f"batch        {batch} {_examples(media)}, {batch / chips:g} per chip"
        + (f", in {micro} microbatches" if micro > 1 else "")
        + f"; remat {config.model.traits.remat or 'none'}",
        f"parameters   {params / 1e6:.1f} M; optimizer and average "
        f"{gib(optimizer_bytes(run))} over all chips",
        *_frozen(run),
    ]


def _examples(media: str) -> str:
    """What a step of a media type has, for a person."""
    return f"examples of media={media}" if media not in ("", "video") else "clips"


def _frozen(run: Run) -> list[str]:
    if not run.frozen:
        return []
    networks = ", ".join(
        f"{plan.config.name} {sum(leaf.size for leaf in jax.tree.leaves(plan.shapes)) / 1e6:.1f} M"
        for plan in run.frozen.values()
    )
    return [
        f"frozen       {networks}; {gib(frozen_bytes(run))} per device with config.mesh.frozen = "
        f"{run.config.mesh.frozen}"
    ]


def kind_of(target: Slice) -> str:
    """Name of the chip, or CPU."""
    return target.chip.kind if target.chip else "CPU"


def _memory(run: Run, target: Slice, check: Check) -> list[str]:
    chip, memory = target.chip, check.memory
    usable = f" of {gib(chip.hbm)} usable" if chip else " (CPU: no limit known)"
    remedy = "use a smaller batch, --remat=full, or a larger fsdp axis"
    if run.config.data.batch_of(check.media) <= batch_parts(run.mesh):  # one clip at a time
        remedy = f"share the tokens of a clip out ({SEQUENCE} in --mesh), or {remedy}"
    if not target.compiles and chip is not None:
        each = "GPU" if chip.platform == "gpu" else "device"
        known = f"state and batch take {gib(check.arguments)} of {gib(chip.hbm)} per {each}"
        if check.unknown(target):
            why = "XLA's compiler for GPUs does not run on a machine without one"
            if target.stand_ins:
                why = "no compiler was asked (`ivj check` without --quick does)"
            return [
                f"memory       NOT KNOWN: {known}; activations and the libraries' buffers come on "
                f"top, and {why}"
            ]
        return [f"memory       DOES NOT FIT: {known}; {remedy}"]
    if memory is None:
        return [
            f"memory       DOES NOT FIT: the compiler asks for {gib(check.needed)} of "
            f"temporaries{usable}; {remedy}"
        ]
    verdict = "FITS" if check.fits(chip) else "DOES NOT FIT"
    each = "device" if chip and chip.cores > 1 else "chip"
    return [
        f"memory       {verdict}: peak {gib(memory.peak)}{usable}; arguments "
        f"{gib(memory.arguments)}, temporaries {gib(memory.temporaries)} per {each}"
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


def _eight_bits(target: Slice, check: Check) -> list[str]:
    """Products of eight bits, and at which rate they are counted."""
    lines = []
    for name, flops in (("int8", check.int8), ("fp8", check.fp8)):
        if not flops:
            continue
        chip = target.chip
        rate = getattr(chip, name) if chip else 0.0
        at = (
            f"{rate / chip.flops:.2g} x the rate of bfloat16"
            if chip and rate
            else (f"which {kind_of(target)} has not, or at no published rate: counted as bfloat16")
        )
        lines.append(f"             {flops / 1e12:.4g} T of the executed are of {name}, {at}")
    return lines


def _flops(target: Slice, check: Check) -> list[str]:
    extra = (
        f"; {check.unknown_loops} while loops counted as one pass" if check.unknown_loops else ""
    )
    return [
        f"attention    {check.attention}",
        (
            f"FLOPs        model {check.model / 1e12:.4g} T per step, executed "
            f"{check.executed / 1e12:.4g} T: {check.executed / check.model:.3f} x{extra}"
            if check.model
            else f"FLOPs        executed {check.executed / 1e12:.4g} T per step{extra}"
        ),
        *(
            [f"             {check.frozen / 1e12:.4g} T of the executed are the frozen networks'"]
            if check.frozen
            else []
        ),
        *_eight_bits(target, check),
    ]


def _collectives(run: Run, target: Slice, check: Check) -> list[str]:
    if check.program is None:
        return [f"collectives  unavailable: {check.program_error}"]
    found = check.program.collectives
    if not found:
        return ["collectives  none"]
    each = "device" if target.chip and target.chip.cores > 1 else "chip"
    lines = [f"collectives  {check.program.wire_bytes / 1e6:.1f} MB sent per {each} and step"]
    for item in found:
        lines.append(
            f"  {item.kind:<19} {item.count:>5} x over {item.group:>4} {each}s, {item.dtype:<4} "
            f"{item.wire / 1e6:>10.2f} MB"
        )
    shares = gathered_shares(run, check)
    if shares is not None:
        total, largest = shares
        lines.append(
            f"gathers      {total:.2f} x the parameters in bfloat16 per step, the largest "
            f"{largest:.4f} x at a time"
        )
        if gathers_everything(run, check):
            lines.append(
                "             ERROR: one all-gather holds a good part of all parameters, which "
                "undoes fsdp; keep config.model.scan=True and name the parameters in the sharding "
                "rules"
            )
    return lines


def gathered_shares(run: Run, check: Check) -> tuple[float, float] | None:
    """What all-gathers produce, as shares of the parameters in bfloat16: all in a step, and the
    largest one at a time. Frozen networks count as parameters.

    None where nothing is split or the program cannot be read. Gathered activations count as well.
    """
    if check.program is None or run.mesh.shape["fsdp"] == 1:
        return None
    networks = [plan.shapes for plan in run.frozen.values()]
    params = sum(leaf.size for leaf in jax.tree.leaves((run.plan.params, networks)))
    whole = 2.0 * params / run.mesh.shape["tensor"]
    return check.program.gathered / whole, check.program.gathered_largest / whole


def gathers_everything(run: Run, check: Check) -> bool:
    """Whether one all-gather is above GATHERED_LIMIT and GATHERED_BYTES."""
    shares = gathered_shares(run, check)
    if shares is None or check.program is None:
        return False
    return shares[1] > GATHERED_LIMIT and check.program.gathered_largest > GATHERED_BYTES


def _speed(target: Slice, check: Check) -> list[str]:
    chip, devices = target.chip, len(target.devices)
    if chip is None:
        return ["speed        not known: CPU devices say nothing about the speed of a chip"]
    if check.memory is None and target.compiles:
        return []
    line = check.roofline(chip, devices)
    limits = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in line.limits.items())
    lines = [f"bounds       {limits}: {line.binding} binds"]
    if not target.compiles:
        return [*lines, "             (HBM and links unknown: nothing was compiled)"]
    if check.program is None:
        return [*lines, "             (HBM and ICI unknown, since the program cannot be read)"]
    if not chip.ici_rate:
        lines.append(f"             (ICI unknown: the rate of the links of {chip.kind} is)")
    traffic = check.program.hbm_bytes
    ridge = chip.flops / chip.hbm_rate
    lines.append(
        f"intensity    {check.executed / devices / max(traffic, 1.0):.0f} FLOPs per HBM byte "
        f"({traffic / 1e9:.1f} GB); {chip.kind} needs {ridge:.0f} to be compute-bound"
    )
    if chip.clock:
        cycles = check.program.cycles / chip.clock
        lines.append(
            f"estimate     {cycles * 1e3:.1f} ms from the compiler's cycles, without "
            f"{check.program.unestimated} kernels and the collectives: to rank variants, no "
            "prediction"
        )
    return lines


def _best(run: Run, target: Slice, check: Check) -> list[str]:
    chip, devices = target.chip, len(target.devices)
    if chip is None or (check.memory is None and target.compiles):
        return []
    batch, bound = run.config.data.batch_of(check.media), check.roofline(chip, devices).bound
    possible = devices * chip.flops * bound
    mfu = f"MFU {100 * check.model / possible:.1f} %" if check.model else "MFU not known"
    if check.frozen:  # work that is asked for, but nothing of it is trained
        mfu += f", with the frozen networks {100 * (check.model + check.frozen) / possible:.1f} %"
    rate, what = batch / bound, _examples(check.media)
    return [
        f"at best      {bound * 1e3:.1f} ms per step, {rate:.0f} {what}/s "
        f"({rate / target.chips:.1f} per chip), {mfu}"
    ]


def _run(
    run: Run, target: Slice, check: Check, length_known: bool, length: str, price: float
) -> list[str]:
    chip = target.chip
    if chip is None or (check.memory is None and target.compiles):
        return []
    if not length_known:
        return ["run          length unknown: give --records=N (clips of the dataset) or its name"]
    bound = check.roofline(chip, len(target.devices)).bound
    source = f" ({length}: {run.records} clips)" if length else ""
    if len(media_of(run.config.data)) > 1:
        source += f", if all were of media={check.media},"
    return [
        f"run          {run.steps} steps{source}: at best "
        f"{duration(run.steps, bound, target.chips, price)}; evaluation, checkpoints and waiting "
        "for data come on top"
    ]


def _cost(target: Slice, check: Check) -> list[str]:
    what = f"compiled in  {check.compile_seconds:.1f} s (traced and lowered "
    if not target.compiles:
        what = "not compiled (traced in "
    lines = [
        f"{what}{check.lower_seconds:.1f} s), {check.cpu_seconds:.1f} CPU s, "
        f"{gib(check.host_bytes)} of host memory; {versions()}",
        "not checked  on hardware; bounds assume peak rates and perfect overlap",
    ]
    if target.hosts > 1 and not target.compiles and not target.stand_ins:
        lines.append(
            f"             the network between hosts of {GPUS_OF_A_HOST} GPUs is not looked at"
        )
    if "*" in target.name:
        lines.append("             what crosses the network between slices is not looked at")
    return lines


def versions() -> str:
    """Of the packages that compile, as `jax 0.8, ...`."""
    found = []
    for package in ("jax", "jaxlib", "libtpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def facts_of(run: Run, target: Slice, checks: Sequence[Check]) -> dict[str, Any]:
    """The facts of a run: `row` of its step that needs most, and where there are several of all."""
    rows = {check.media: row(run, target, check) for check in checks}
    largest = max(checks, key=lambda check: check.memory.peak if check.memory else math.inf)
    facts = dict(rows[largest.media], fits=all(each["fits"] for each in rows.values()))
    return facts if len(rows) == 1 else {**facts, "media": rows}


def row(run: Run, target: Slice, check: Check) -> dict[str, Any]:
    """The facts of one check as plain values, for tables."""
    memory, program = check.memory, check.program
    facts: dict[str, Any] = {
        "topology": target.name,
        "devices": len(target.devices),
        "chips": target.chips,
        "mesh": dict(run.mesh.shape),
        "batch": run.config.data.batch_of(check.media),
        "remat": run.config.model.traits.remat,
        "microbatches": run.config.optim.accumulate,
        "steps": run.steps,
        "fits": check.fits(target.chip),
        "memory": None if memory is None else dataclasses.asdict(memory),
        "needed": check.needed,
        "arguments": check.arguments,
        "model_flops": check.model,
        "frozen_flops": check.frozen,
        "frozen_bytes": frozen_bytes(run),
        "executed_flops": check.executed,
        "wire_bytes": None if program is None else program.wire_bytes,
        "hbm_bytes": None if program is None else program.hbm_bytes,
        "gathered": gathered_shares(run, check),
        "gathers_everything": gathers_everything(run, check),
        "ragged": len(ragged_shards(run)),
        "whole": list(whole_parameters(run)),
        "compile_seconds": check.compile_seconds,
        "cpu_seconds": check.cpu_seconds,
        "versions": versions(),
    }
    facts |= {
        f"{name}_flops": flops
        for name, flops in (("int8", check.int8), ("fp8", check.fp8))
        if flops
    }
    if target.chip is not None and (memory is not None or not target.compiles):
        line = check.roofline(target.chip, len(target.devices))
        facts |= {"seconds": line.limits, "bound": line.bound, "binding": line.binding}
    return facts
