"""The training loop: a batch, the step, and what is due after it."""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from data_pipelines.stream.pipeline import TrainStream
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.checkpoint.run_folder import RunFolder
from internvideo_jax.checkpoint.steps import safe_text
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.run import drawings, headline, run_evaluators
from internvideo_jax.ops import attention
from internvideo_jax.parallel import multihost
from internvideo_jax.parallel.mesh import batch_sharding
from internvideo_jax.parallel.multihost import say
from internvideo_jax.run.alarms import Alarms, metric_rows
from internvideo_jax.run.build import Run
from internvideo_jax.run.guard import Guard
from internvideo_jax.run.step import make_train_step
from internvideo_jax.runtime.interrupt import Interrupt
from internvideo_jax.runtime.watchdog import Watchdog
from internvideo_jax.tasks import Result
from internvideo_jax.telemetry.profile import Profiler
from internvideo_jax.telemetry.progress import Progress, clock
from internvideo_jax.telemetry.report import write_report
from internvideo_jax.telemetry.writer import METRICS, MetricWriter, read_rows
from internvideo_jax.types import Batch, TrainState, Tree

# Steps that may be in flight. Without a bound the host would run ahead and pile up batches.
IN_FLIGHT = 2
# Seconds until the next line of the log from which on it is said how long they will be.
SILENCE = 10.0
REPORT = "report.html"
Metrics = Mapping[str, jax.Array]  # of a step, still on the devices


@dataclasses.dataclass(frozen=True)
class Begun:
    """A run before its first step here.

    Attributes:
      start: the step before it: 0, or that of the checkpoint that the run goes on from.
      frozen: parameters of frozen networks, by the field of the objective that owns them.
      provenance: what `run.json` and the checkpoints say.
    """

    start: int
    state: TrainState
    stream: TrainStream
    frozen: Tree
    provenance: dict[str, Any]


class Loop:
    """One step after another: a batch, the step, and what is due after it."""

    def __init__(
        self,
        run: Run,
        begun: Begun,
        folder: RunFolder,
        context: EvalContext,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        watchdog: Watchdog,
        interrupt: Interrupt,
    ):
        self.run, self.config, self.folder, self.context = run, run.config, folder, context
        self.state, self.stream, self.begun = begun.state, begun.stream, begun
        self.checkpoints, self.writer = checkpoints, writer
        self.watchdog, self.interrupt = watchdog, interrupt
        self.profiler = Profiler(
            folder.local,
            self.config.profile.start,
            self.config.profile.steps,
            run.steps,
            folder.shown,
        )
        self.progress = Progress(run.steps, self.stream.plan.mean_batch(), run.flops)
        self.train_step = make_train_step(run, begun.frozen)
        self.sharding = batch_sharding(run.mesh)
        self.in_flight: collections.deque[Any] = collections.deque()
        self.guard = Guard(
            checkpoints,
            self.config.max_nonfinite,
            begun.start,
            int(self.state.nonfinite),
            lambda text: say(text, sys.stderr),
        )
        written = read_rows(folder.local / METRICS) if multihost.is_main() else ()
        self.alarms = Alarms(written, self.config.evals)

    def step(self, step: int) -> bool:
        """Does step `step`; whether the run stops here because it was asked to.

        Raises:
          AllEnd: it ends here for what an evaluator found; the state is saved.
        """
        first, last = step == self.begun.start + 1, step == self.run.steps
        with self.progress.waiting(), self.watchdog.doing("waiting for data"):
            batch = next(self.stream)
        if self.profiler.begins(step):
            with self.progress.paused(self.state):
                self.profiler.begin(step, self.state)
        if first:
            metrics, placed = self._compiled(step, batch)
        else:
            metrics, placed = self._advance(step, batch)
        if len(self.in_flight) > IN_FLIGHT:
            jax.block_until_ready(self.in_flight.popleft())
        if self.profiler.ends(step):
            with self.progress.paused(self.state):
                text = self.profiler.finish(
                    step, self.state, lambda: self.train_step.text(self.run, placed)
                )
                say(text)
        regular = step % self.config.log.every == 0 or last or step == 1
        stop = multihost.stop_after(step, self.interrupt.requested, agree=regular or first)
        if regular or first:
            # The extra line after a restart is not written: no uninterrupted run has it.
            self._log(step, metrics, written=regular)
        elif step == self.begun.start + 2:
            self._foretell(step, metrics)
        self._evaluate(step, last)
        # Saving comes after logging and evaluating, so a restart never misses their rows.
        saved = False
        ends = last or stop or bool(self.alarms.raised)
        if step % self.config.checkpoint.every == 0 or ends or self.guard.owes:
            with self.progress.paused(self.state), self.watchdog.doing("saving", pause=True):
                saved = self.guard.save(step, self.state, self.begun.provenance, last=last)
        if self.alarms.raised:
            raise self._ended(step, saved)
        if stop and not last:
            self._stopped(step, saved)
            return True
        self.watchdog.stepped(step)
        return False

    def _advance(self, step: int, batch: Batch) -> tuple[Metrics, Batch]:
        with self.profiler.step(step):
            placed = multihost.to_global(batch, self.sharding)
            self.state, metrics = self.train_step(self.state, placed)
        self.in_flight.append(metrics)
        self.guard.stepped(metrics)
        return metrics, placed

    def _compiled(self, step: int, batch: Batch) -> tuple[Metrics, Batch]:
        """The first step here, and how long its compilation took."""
        say("compiling the train step ...")
        began = time.monotonic()
        with attention.recording() as sites:
            result = self._advance(step, batch)
        say(f"compiled in {time.monotonic() - began:.1f} s")
        say(f"attention: {attention.summary(sites)}")
        return result

    def _log(self, step: int, metrics: Metrics, *, written: bool) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.guard.check(step)
        perf = self.progress.lap(step)
        say(self.progress.line(step, values, perf))
        if written:
            stream = self.stream
            seen = {"clips_seen": stream.plan.examples(step), **stream.seen(step)}
            self.writer.metrics(step, {**values, **seen})
            self.writer.perf(step, {**perf, "perf/substituted": stream.substitutions})

    def _foretell(self, step: int, metrics: Metrics) -> None:
        """Says how long steps are where nothing else will be heard for long."""
        jax.block_until_ready(metrics)
        every, pace = self.config.log.every, self.progress.pace(step)
        heard = min((step // every + 1) * every, self.run.steps)
        if pace * (heard - step) > SILENCE:
            say(
                f"a step takes about {pace:.2g} s, all of them {clock(pace * self.run.steps)}; the "
                f"next line is at step {heard}, in about {clock(pace * (heard - step))}"
            )

    def _evaluate(self, step: int, last: bool) -> None:
        due = {
            label: evaluator
            for label, evaluator in self.config.evals.items()
            if (last and evaluator.every >= 0)
            or (evaluator.every > 0 and step % evaluator.every == 0)
        }
        if due:
            with self.progress.paused(self.state), self.watchdog.doing("evaluating", pause=True):
                results = evaluate(
                    self.run,
                    self.state,
                    due,
                    self.context,
                    self.writer,
                    self.folder.local,
                    step,
                    self.alarms.earlier,
                )
                self.alarms.heard(results)

    def _on_disk(self, step: int, saved: bool) -> str:
        """Waits until everything is; what is there."""
        self.profiler.finish(step, self.state)
        with self.watchdog.doing("saving", pause=True):
            self.checkpoints.wait()
        if not saved:
            return f"step {step} was skipped and not saved, {safe_text(self.folder.place)}"
        return f"saved step {step} in {self.checkpoints.place}"

    def _stopped(self, step: int, saved: bool) -> None:
        what = self._on_disk(step, saved)
        say(
            f"{self.interrupt.name or 'another process was stopped'}: {what}; start the same "
            "command again to go on"
        )

    def _ended(self, step: int, saved: bool) -> multihost.AllEnd:
        """The error for the alarm of an evaluator; the report shows how it came to it."""
        what, raised = self._on_disk(step, saved), self.alarms.raised
        self.writer.close()
        if multihost.is_main() and self.config.log.report:
            what += f"; report: {leave_report(self.folder)}"
        label = raised.partition(":")[0]
        return multihost.AllEnd(
            f"stopped at step {step} of {self.run.steps}: config.evals.{raised}; {what}. Compare "
            "the objective, its targets and config.optim.lr with the recipe's; to go on from there "
            f"all the same: --config.evals.{label}.action=warn"
        )


def evaluate(
    run: Run,
    state: TrainState,
    due: dict[str, Any],
    context: EvalContext,
    writer: MetricWriter,
    workdir: Path,
    step: int,
    earlier: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, Result]:
    """Runs the evaluators that are due, on the averaged parameters where there are any."""
    results = run_evaluators(
        due,
        context,
        run.parametrisation.of(state, averaged=True),
        folder=workdir,
        provenance={"step": step, "params": "params" if state.ema is None else "ema"},
        earlier=earlier,
    )
    say(f"step {step} | {headline(results)}")
    writer.metrics(step, metric_rows(results))
    for label, result in results.items():
        for name, file in drawings(label, result).items():
            writer.picture(step, f"eval/{label}/{name}", workdir / file)
    return results


def leave_report(folder: RunFolder) -> str:
    """Writes the page about the run into its folder; where it is, as the user knows it."""
    write_report([folder.local], folder.local / REPORT, names=[folder.name])
    return folder.shown(folder.local / REPORT)
