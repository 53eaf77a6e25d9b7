"""What a compiled program moves, read from its text: collectives, HBM traffic, cycle estimates.

Written for the text of the TPU compiler (libtpu 0.0.51); that of XLA on CPU has the same grammar.
"""

from __future__ import annotations

import collections
import dataclasses
import re

ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0, "opaque": 0}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that move nothing themselves.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "copy-done",
    "async-done",
    "async-update",
    "slice-done",
}
# Inside a fusion these change the form of a value, not how much of it is read.
FORM = {"bitcast", "convert", "reshape", "transpose", "copy"}
SLICES = {"dynamic-slice", "slice", "gather"}

SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array of the program on one device."""

    size: int  # bytes
    hbm: bool  # False: on the chip (a memory space other than the default)
    dtype: str


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of the compiled program."""

    name: str
    opcode: str
    shapes: tuple[Buffer, ...]
    operands: tuple[str, ...]
    rest: str  # attributes
    root: bool

    def attribute(self, name: str) -> str:
        """Name of the computation given as `name=%computation`, or ""."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def size(self) -> int:
        """Bytes of its results."""
        return sum(buffer.size for buffer in self.shapes)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind, group size and element type in one step of one device."""

    kind: str
    group: int  # devices that take part
    dtype: str
    count: int
    wire: float  # bytes that a device sends


@dataclasses.dataclass
class CompiledProgram:
    """What one device does in one step."""

    collectives: list[Collective]
    hbm_bytes: float  # read and written, without the padding of tiles
    cycles: float  # the compiler's estimate, collectives and custom kernels not included
    unestimated: int  # kernels without an estimate
    unknown_loops: int  # loops whose number of passes is not in the text, counted as one
    gathered: float = 0.0  # bytes that all-gathers produce in a step
    gathered_largest: float = 0.0  # bytes that one of them produces at a time

    @property
    def wire_bytes(self) -> float:
        """That a device sends in a step."""
        return sum(item.wire for item in self.collectives)


def read_program(text: str, devices: int) -> CompiledProgram:
    """Reads the text of a compiled module.

    Args:
      devices: group size of a collective that names no groups.
    """
    computations, entry = parse(text)
    reader = _Reader(computations, devices)
    reader.walk(entry, 1)
    merged: dict[tuple[str, int, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    gathered = largest = 0.0
    for kind, group, dtype, times, wire in reader.seen.values():
        if kind == "all-gather" and group > 1:
            result = wire * group / (group - 1)
            gathered, largest = gathered + times * result, max(largest, result)
        entry_of = merged[kind, group, dtype]
        entry_of[0] += times
        entry_of[1] += times * wire
    found = [Collective(*key, int(n), wire) for key, (n, wire) in merged.items()]
    found.sort(key=lambda item: -item.wire)
    return CompiledProgram(
        found,
        reader.hbm,
        reader.cycles,
        reader.unestimated,
        reader.unknown_loops,
        gathered,
        largest,
    )


class _Reader:
    def __init__(self, computations: dict[str, Computation], devices: int):
        self.computations, self.devices = computations, devices
        self.seen: dict[tuple[str, str], tuple[str, int, str, int, float]] = {}
        self.hbm, self.cycles = 0.0, 0.0
        self.unestimated = self.unknown_loops = 0

    def walk(self, name: str, times: int) -> None:
        """A computation that runs instruction by instruction: entry, loop body, branch."""
        computation = self.computations[name]
        for item in computation.values():
            if item.opcode == "while":
                self.walk(item.attribute("body"), times * self.passes(item))
            elif item.opcode == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", item.rest.split("metadata")[0]):
                    if branch in self.computations:
                        self.walk(branch, times)
            elif item.opcode == "call":
                self.walk(item.attribute("to_apply"), times)
            if item.opcode not in FREE and '"AllocateBuffer"' not in item.rest:
                self.execute(name, computation, item, times)

    def execute(self, host: str, computation: Computation, item: Instruction, times: int) -> None:
        called = self.computations.get(item.attribute("calls"), {})
        inside = [item, *called.values()]
        moving = [part for part in inside if collective_kind(part.opcode)]
        for part in moving:
            self.collective(host, item.attribute("calls"), part, times)
        self.hbm += times * self.traffic(computation, item, called)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', item.rest)
        if estimate:
            self.cycles += times * int(estimate[1])
        elif item.opcode == "custom-call" and not moving:
            self.unestimated += times

    def collective(self, host: str, within: str, item: Instruction, times: int) -> None:
        # The parts of an overlapped collective are clones that share a channel: one transfer. All
        # that a program permutes by hand shares one too, and these are transfers of their own.
        channel = re.search(r"channel_id=(\d+)", item.rest)
        if collective_kind(item.opcode) == "collective-permute":
            channel = None
        key = (host, channel[1] if channel else f"{within}/{item.name}")
        kind, group = collective_kind(item.opcode), group_size(item.rest, self.devices)
        # The TPU compiler writes a reduce-scatter as an all-reduce and a slice in one fusion.
        if kind == "all-reduce" and "all-reduce-scatter" in within:
            kind = "reduce-scatter"
            size = item.size
        elif item.opcode == "all-gather-start":  # (operands, results)
            size = sum(buffer.size for buffer in item.shapes[len(item.shapes) // 2 :])
        elif item.opcode == "collective-permute-start":
            size = item.shapes[0].size
        else:
            size = item.size * (group if kind == "reduce-scatter" else 1)
        share = (group - 1) / group
        wire = {
            "all-reduce": 2 * share * size,
            "collective-permute": float(size),
        }.get(kind, share * size)
        self.seen[key] = (kind, group, item.shapes[0].dtype, times, wire)

    def passes(self, loop: Instruction) -> int:
        """Trip count: stated, or the constant that the condition compares with."""
        known = re.search(r'known_trip_count[^0-9]*"?n"?[^0-9]*(\d+)', loop.rest)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute("condition"), {})
        constants = [
            int(found[1])
            for item in condition.values()
            if item.opcode == "constant" and (found := re.match(r"(\d+)$", item.operands[0]))
        ]
        if len(constants) != 1:
            self.unknown_loops += 1
            return 1
        return constants[0]

    def traffic(self, computation: Computation, item: Instruction, called: Computation) -> float:
        """HBM bytes that one instruction reads and writes."""
        inputs = [computation[name] for name in item.operands if name in computation]
        if not called:
            if item.opcode in ("dynamic-update-slice", "scatter"):
                inputs = inputs[1:]
                return 2.0 * sum(_in_hbm(part) for part in inputs)
            written = _in_hbm(item)
            if item.opcode.endswith("-start"):  # the result repeats the operand
                written = item.shapes[0].size if item.shapes[0].hbm else 0
            if item.opcode in SLICES or item.opcode in ("slice-start",):
                return 2.0 * item.shapes[0].size
            return written + sum(_in_hbm(part) for part in inputs)
        moved = 0.0
        uses = _uses(called)
        parameters = [part for part in called.values() if part.opcode == "parameter"]
        for part in parameters:
            index = int(part.operands[0]) if part.operands[0].isdigit() else -1
            if 0 <= index < len(inputs) and _in_hbm(inputs[index]):
                moved += _read(part, called, uses)
        root = next((part for part in called.values() if part.root), None)
        if root is None:
            return moved + _in_hbm(item)
        results = [called[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(results) != len(item.shapes):
            return moved + (0 if root.opcode == "custom-call" else _in_hbm(item))
        for buffer, result in zip(item.shapes, results, strict=True):
            if buffer.hbm:
                moved += _written(result, called)
        return moved


def _in_hbm(item: Instruction) -> int:
    return sum(buffer.size for buffer in item.shapes if buffer.hbm)


def _uses(called: Computation) -> dict[str, list[Instruction]]:
    uses: dict[str, list[Instruction]] = collections.defaultdict(list)
    for item in called.values():
        for name in item.operands:
            uses[name].append(item)
    return uses


def _read(item: Instruction, called: Computation, uses: dict[str, list[Instruction]]) -> float:
    """Bytes of a fusion's parameter that are read: all of it, unless only slices are used."""
    whole, total, stack = float(item.size), 0.0, [item]
    while stack:
        current = stack.pop()
        for user in uses[current.name]:
            scale = item.size / max(current.size, 1)
            if user.opcode in FORM:
                stack.append(user)
            elif user.opcode in SLICES and user.operands[0] == current.name:
                total += user.size * scale
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == current.name:
                pass  # changed in place
            elif user.opcode == "tuple" or collective_kind(user.opcode):
                pass  # handed through; what goes over the network is counted there
            elif user.opcode == "custom-call" and "AsyncCollective" in user.rest:
                pass
            else:
                return whole
    return min(whole, total)


def _written(result: Instruction, called: Computation) -> float:
    current = result
    while current.opcode in FORM and current.operands and current.operands[0] in called:
        current = called[current.operands[0]]
    if current.opcode == "dynamic-update-slice":
        return float(called[current.operands[1]].size)
    if current.opcode in ("parameter", "get-tuple-element"):
        return 0.0 if current is result else float(result.size)
    if current.opcode == "custom-call" and "AsyncCollective" in current.rest:
        return 0.0
    return float(result.size)


def collective_kind(opcode: str) -> str:
    """`all-gather` for all-gather and all-gather-start; "" for anything that sends nothing."""
    base = opcode.removesuffix("-start")
    return base if base in COLLECTIVES else ""


def group_size(attributes: str, devices: int) -> int:
    """Devices in one group, from the forms in which the text writes groups.

    Raises:
      ValueError: groups in a form not known here.
    """
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", attributes
    )
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        group = 1
        for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2]):
            group *= int(part) if part else sizes[name]
        return group
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if counted:
        return int(counted[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    if "source_target_pairs" in attributes:
        return 2
    if re.search(r"replica_groups=(?!\{\})", attributes):
        raise ValueError(f"unknown form of replica groups in {attributes[:160]!r}")
    return devices


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
            continue
        start = LINE.match(line)
        if start:
            shape, opcode, operands, rest = _split(line[start.end() :])
            names = tuple(re.findall(r"%([\w.\-]+)", operands)) or (operands.strip(),)
            current[start[2]] = Instruction(
                start[2], opcode, shape, names, rest, start[1] is not None
            )
    if not entry:
        raise ValueError("this is not the text of a compiled module: it has no ENTRY")
    return computations, entry


def _split(line: str) -> tuple[tuple[Buffer, ...], str, str, str]:
    """Shapes, opcode, operands and attributes of `SHAPE opcode(OPERANDS), ATTRIBUTES`."""
    end = _closing(line, 0) + 1 if line.startswith("(") else line.index(" ")
    shapes = tuple(_buffer(*found) for found in SHAPE.findall(line[:end]))
    opened = line.index("(", end)
    closed = _closing(line, opened)
    return shapes, line[end:opened].strip(), line[opened + 1 : closed], line[closed + 1 :]


def _closing(line: str, start: int) -> int:
    depth = 0
    for found in re.finditer(r"[()]", line[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError(f"unbalanced parentheses in {line[:120]!r}")


def _buffer(dtype: str, dimensions: str, layout: str) -> Buffer:
    bits = ITEM_BITS.get(dtype)
    if bits is None:
        digits = re.search(r"\d+", dtype)
        bits = int(digits[0]) if digits else 0
    elements = 1
    for size in filter(None, dimensions.split(",")):
        elements *= int(size)
    space = re.search(r"S\((\d+)\)", layout)
    return Buffer(elements * bits // 8, space is None or space[1] == "0", dtype)
