"""A trace of a few training steps, and the page that says what they spent their time on.

Everything lies in `profile/` of the workdir: what `jax.profiler` writes (for xprof and Perfetto)
and `summary.md`, made from the same events without TensorFlow.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from internvideo_jax.parallel.multihost import is_main
from internvideo_jax.types import Tree

FOLDER, SUMMARY = "profile", "summary.md"
TOP = 25  # operations in the table
SOURCE = re.compile(r'%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"')
# Calls of jax that say nothing about the model.
WRAPPERS = re.compile(r"^(jit\(\w+\)|jvp\(\)|transpose\(jvp\(\)\)|while|body|closed_call)$")


@dataclasses.dataclass(frozen=True)
class Event:
    """One execution of an operation on one timeline; nanoseconds."""

    name: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Timelines:
    """Operations of a trace: one list per timeline, and the timelines of each device."""

    platform: str  # TPU | GPU | CPU
    devices: dict[str, list[list[Event]]]


class Profiler:
    """Traces the steps `start` to `start + steps - 1` of a run, on its main process.

    Args:
      start: first traced step, 0 for none.
      last: step that the run ends with.
      shown: a path in `workdir` as messages have it.

    Raises:
      ValueError: a range outside of the run.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        last: int,
        shown: Callable[[Path], str] = str,
    ):
        if start < 0 or (start and (steps < 1 or start + steps - 1 > last)):
            raise ValueError(
                f"config.profile.start = {start}, config.profile.steps = {steps}: expected steps "
                f"between 1 and {last}, the last of the run; start=0 switches the profile off"
            )
        self.folder, self._shown = workdir / FOLDER, shown
        self._range = range(start, start + steps) if start and is_main() else range(0)
        self._begun: tuple[float, float, int] | None = None

    def begins(self, step: int) -> bool:
        """True before the first step that is traced."""
        return self._begun is None and step in self._range

    def begin(self, step: int, settled: Tree) -> None:
        """Starts the trace before a step; `settled` is what earlier steps still compute."""
        jax.block_until_ready(settled)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python frames would be most of the file
        jax.profiler.start_trace(str(self.folder), profiler_options=options)
        self._begun = (time.perf_counter(), time.process_time(), step)

    def step(self, step: int) -> Any:
        """Context that marks a step in the trace."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def ends(self, step: int) -> bool:
        """True after the last traced step."""
        return self._begun is not None and step == self._range[-1]

    def finish(self, step: int, settled: Tree, program: Callable[[], str] | None = None) -> str:
        """Ends the trace and writes the summary; returns the lines to print, "" without a trace.

        Args:
          step: last traced step.
          settled: what the traced steps compute.
          program: gives the text of the compiled step, which names the source of operations.
        """
        if self._begun is None:
            return ""
        jax.block_until_ready(settled)
        began, used, first = self._begun
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        self._begun, self._range = None, range(0)
        jax.profiler.stop_trace()
        files = sorted(self.folder.glob("plugins/profile/*/*.xplane.pb"), key=os.path.getmtime)
        if not files:
            return f"profile: the profiler wrote no trace to {self.folder}"
        # Compilers of several hosts may wait for each other, and only this one is here.
        text = "" if program is None or jax.process_count() > 1 else _text(program)
        page = summary(
            read_trace(files[-1]),
            steps=(first, step),
            seconds=seconds,
            cpu_seconds=cpu,
            sources=dict(SOURCE.findall(text)),
            folder=str(files[-1].parent.relative_to(self.folder)),
        )
        (self.folder / SUMMARY).write_text(page, encoding="utf-8")
        return f"profile of steps {first} to {step}: {self._shown(self.folder / SUMMARY)}"


def _text(program: Callable[[], str]) -> str:
    """The program's text, "" where the compiler cannot print it: the page is complete without."""
    try:
        return program()
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError):
        return ""


def read_trace(path: Path) -> Timelines:
    """Operations in an .xplane.pb file."""
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = {
        plane.name: list(plane.lines)
        for plane in planes
        if re.match(r"/device:(TPU|GPU):\d+$", plane.name)
    }
    if not devices:
        found = [_named(line.events) for p in planes if p.name == "/host:CPU" for line in p.lines]
        return Timelines("CPU", {"CPU": [line for line in found if line]})
    platform = re.findall(r"TPU|GPU", next(iter(devices)))[0]
    return Timelines(
        platform, {name: _device_lines(platform, lines) for name, lines in devices.items()}
    )


def _device_lines(platform: str, lines: Sequence[Any]) -> list[list[Event]]:
    if platform == "TPU":  # the other lines show the same time as steps and modules
        kept = [line for line in lines if line.name == "XLA Ops"]
        return [[Event(e.name, e.start_ns, e.end_ns) for e in line.events] for line in kept]
    return [_named(line.events, kernels=True) for line in lines if line.name.startswith("Stream")]


def _named(events: Iterable[Any], kernels: bool = False) -> list[Event]:
    """The events that are operations of a program; with `kernels` also those of no operation."""
    found = []
    for event in events:
        name = dict(event.stats).get("hlo_op", event.name if kernels else None)
        if name is not None:
            found.append(Event(str(name), event.start_ns, event.end_ns))
    return found


def own_times(line: Sequence[Event]) -> list[tuple[str, float]]:
    """Name and nanoseconds of every event without what runs inside of it (the body of a loop)."""
    found: list[tuple[str, float]] = []
    stack: list[tuple[Event, int]] = []
    for event in sorted(line, key=lambda e: (e.start, -e.end)):
        while stack and stack[-1][0].end <= event.start:
            stack.pop()
        if stack:
            outer, place = stack[-1]
            name, own = found[place]
            found[place] = (name, own - (min(event.end, outer.end) - event.start))
        found.append((event.name, event.end - event.start))
        stack.append((event, len(found) - 1))
    return found


def busy_share(lines: Sequence[Sequence[Event]], length: float) -> float:
    """Share of `length` nanoseconds in which at least one operation runs."""
    busy, reached = 0.0, float("-inf")
    for event in sorted((e for line in lines for e in line), key=lambda e: e.start):
        busy += max(event.end - max(event.start, reached), 0.0)
        reached = max(reached, event.end)
    return min(busy / max(length, 1.0), 1.0)


def short_source(name: str) -> str:
    """`jit(step)/jvp()/encoder/dot_general` -> `encoder/dot_general`; gradients are marked."""
    parts = [part for part in name.split("/") if not WRAPPERS.match(part)]
    return ("gradient: " if "transpose(" in name else "") + "/".join(parts[-3:])


def summary(
    trace: Timelines,
    *,
    steps: tuple[int, int],
    seconds: float,
    cpu_seconds: float,
    sources: dict[str, str],
    folder: str,
) -> str:
    """The page, Markdown.

    Args:
      steps: first and last traced one.
      seconds, cpu_seconds: of the process over the traced steps.
      sources: operation -> name that jax gave it.
      folder: where the trace lies, relative to the page.
    """
    count, devices = steps[1] - steps[0] + 1, len(trace.devices)
    totals: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for lines in trace.devices.values():
        for name, own in (pair for line in lines for pair in own_times(line)):
            totals[name][0] += own
            totals[name][1] += 1
    whole = sum(own for own, _ in totals.values())
    shares = [busy_share(lines, seconds * 1e9) for lines in trace.devices.values()]
    idle = 1 - sum(shares) / max(len(shares), 1)
    page = [
        f"# Profile of steps {steps[0]} to {steps[1]}",
        "",
        f"- step time: {seconds / count:.4g} s (mean of {count}, with the cost of tracing)",
        f"- idle: {100 * idle:.1f} % of the time no operation ran on "
        + ("the CPU" if trace.platform == "CPU" else f"a device (mean of {devices})"),
        f"- CPU of this process: {cpu_seconds / seconds:.2f} of {os.cpu_count()} cores busy",
        f"- trace: `{folder}` (open it with xprof, or the .json.gz in ui.perfetto.dev)",
    ]
    if not whole:
        return "\n".join([*page, "", f"The {trace.platform} trace has no operations.", ""])
    if trace.platform == "CPU":
        page.append(
            "- not in a CPU trace: how many threads work inside one operation, memory, FLOPs; "
            "virtual devices share one timeline"
        )
    kinds: dict[str, float] = collections.defaultdict(float)
    for name, (own, _) in totals.items():
        kinds[re.sub(r"[.\d]+$", "", name)] += own
    page += ["", "## By kind", "", "| kind | ms per step | share |", "|---|---|---|"]
    scale = 1e-6 / count / max(devices, 1)
    for kind, own in sorted(kinds.items(), key=lambda item: -item[1])[:10]:
        page.append(f"| {kind} | {own * scale:.3f} | {100 * own / whole:.1f} % |")
    page += ["", f"## Operations ({len(totals)}, the first {TOP})", ""]
    page += [
        "| operation | ms per step | share | times per step | source |",
        "|---|---|---|---|---|",
    ]
    for name, (own, times) in sorted(totals.items(), key=lambda item: -item[1][0])[:TOP]:
        source = short_source(sources[name]) if name in sources else ""
        page.append(
            f"| {name} | {own * scale:.3f} | {100 * own / whole:.1f} % | "
            f"{times / count / max(devices, 1):.1f} | {source} |"
        )
    if not sources:
        page += ["", "The program's text was not at hand, so operations have no source."]
    return "\n".join([*page, ""])
