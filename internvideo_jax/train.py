"""The training loop. It knows no model, no objective and no dataset by name.

    ivj train --config=configs/videomae/pretrain.py:size=base \\
        --workdir=runs/pretrain --config.data.train=shards/

Starting the same command again continues where the newest checkpoint stands, to the bit.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import flags

from data_pipelines.commands.lock import DirectoryLock
from data_pipelines.commands.outputs import check_folder
from data_pipelines.stream.pipeline import TrainStream
from internvideo_jax import cli
from internvideo_jax.checkpoint import settings
from internvideo_jax.checkpoint.frozen import check_frozen, load_frozen
from internvideo_jax.checkpoint.initial import check_source, initialise
from internvideo_jax.checkpoint.learned import SECONDS, learned
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.checkpoint.metadata import devices, git_revision, params_digest, versions
from internvideo_jax.checkpoint.steps import safe_text
from internvideo_jax.config import TrainConfig, as_plain
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.run import (
    check_evaluators,
    headline,
    run_evaluators,
    write_json,
)
from internvideo_jax.ops import attention
from internvideo_jax.parallel import multihost
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.parallel.mesh import batch_sharding
from internvideo_jax.protocols import Result
from internvideo_jax.run import seconds
from internvideo_jax.run.alarms import Alarms, metric_rows
from internvideo_jax.run.build import Run, build
from internvideo_jax.run.guard import Guard
from internvideo_jax.run.step import init_state, make_train_step, state_from
from internvideo_jax.runtime.interrupt import Interrupt
from internvideo_jax.runtime.watchdog import Watchdog
from internvideo_jax.telemetry.profile import Profiler
from internvideo_jax.telemetry.progress import Progress
from internvideo_jax.telemetry.report import write_report
from internvideo_jax.telemetry.writer import METRICS, MetricWriter, read_rows
from internvideo_jax.types import Params, TrainState

# Steps that may be in flight. Without a bound the host would run ahead and pile up batches.
IN_FLIGHT = 2
LOCK = "train.lock"
IN_USE = (
    "{directory} is in use by process {process} on {host} since {since}; wait for it, stop it, or "
    "give another --workdir"
)


def say(text: str, file: TextIO | None = None) -> None:
    """Prints on the main process, at once."""
    if multihost.is_main():
        print(text, file=file or sys.stdout, flush=True)


def train(config: TrainConfig, workdir: Path, given: Collection[str] = ()) -> int:
    """Runs or continues one training run; returns the exit code (0 = finished).

    Args:
      given: fields that the command line sets, which a small set does not change (small.py).

    Raises:
      ValueError: another process trains in this workdir.
    """
    check_folder("--workdir", workdir)
    run = build(config, given=given)
    # The main process holds it for the whole job. The others write nothing before they have met it
    # in the constructor of the checkpoints.
    with contextlib.ExitStack() as stack:
        if multihost.is_main():
            try:
                stack.enter_context(DirectoryLock(str(workdir), LOCK, IN_USE))
            except RuntimeError as error:
                raise ValueError(str(error)) from None
        return train_locked(run, workdir)


def train_locked(run: Run, workdir: Path) -> int:
    """`train`, once nobody else writes in the workdir."""
    config = run.config
    if config.init_whole and not config.init_from:
        raise ValueError(
            "this recipe goes on from the weights of an earlier stage: set config.init_from to its "
            "run, or config.init_whole to () to start without"
        )
    context = EvalContext(run.model, run.mesh, config.data, config.seed, classes=run.classes)
    check_evaluators(config.evals, context)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    begun = begin(run, checkpoints)
    if multihost.is_main():
        write_json(workdir / "run.json", begun.provenance)
    writer = MetricWriter(workdir, resume_step=begun.start, tensorboard=config.log.tensorboard)
    watchdog = Watchdog(config.watchdog, workdir, jax.process_index())
    asked = Interrupt(shared=multihost.takes_notices())
    with asked as interrupt, watchdog:
        loop = Loop(run, begun, workdir, context, checkpoints, writer, watchdog, interrupt)
        for step in range(begun.start + 1, run.steps + 1):
            if loop.step(step):
                return interrupt.exit_code or 128 + signal.SIGTERM
    checkpoints.wait()
    params = run.parametrisation.of(loop.state)
    finish(params, begun.provenance, writer, workdir, report=config.log.report)
    begun.stream.close()
    checkpoints.close()
    return 0


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
    frozen: Any
    provenance: dict[str, Any]


def begin(run: Run, checkpoints: Checkpoints) -> Begun:
    """Continues, starts from other weights, or starts fresh. The step is the data position."""
    config = run.config
    start = checkpoints.latest() or 0
    if config.init_from and not start:
        check_source(config.init_from)
    stream = TrainStream(
        config.data,
        process=jax.process_index(),
        processes=jax.process_count(),
        start_step=start,
        opened=run.opened,
    )
    if start:
        checkpoints.check_classes(start, run.classes)
        checkpoints.check_data(start, stream.identity)
    say(run.summary)
    spans = seconds.of_training(config, run.opened)
    weights = learned(config.init_from) if config.init_from and not start else None
    for line in seconds.lines(config, spans, weights):
        say(line)
    frozen, digests = load_frozen(run.frozen, config.seed, say)
    earlier = []
    if start:
        stored = checkpoints.meta(start).get("frozen", {})
        if digests or stored:
            say(check_frozen(digests, stored, checkpoints.folder))
        changed = checkpoints.check_settings(start, run.plan.shapes, config)
        earlier = settings.history(checkpoints.meta(start), start, changed)
        state = checkpoints.restore(start, run.plan.shapes, run.plan.shardings)
        say(f"continuing at step {start} from {checkpoints.folder}")
        if changed:
            say(f"differs from the checkpoint: {settings.text(changed)}")
    else:
        state = initial_state(run)
    provenance = {
        "config": as_plain(config),
        "versions": versions(),
        "git": git_revision(),
        "devices": devices(),
        "data": stream.identity,
        "classes": run.classes,
        "frozen": digests,
        SECONDS: seconds.as_plain(spans),
        "history": earlier,
    }
    return Begun(start, state, stream, frozen, provenance)


class Loop:
    """One step after another: a batch, the step, and what is due after it."""

    def __init__(
        self,
        run: Run,
        begun: Begun,
        workdir: Path,
        context: EvalContext,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        watchdog: Watchdog,
        interrupt: Interrupt,
    ):
        self.run, self.config, self.workdir, self.context = run, run.config, workdir, context
        self.state, self.stream, self.begun = begun.state, begun.stream, begun
        self.checkpoints, self.writer = checkpoints, writer
        self.watchdog, self.interrupt = watchdog, interrupt
        self.profiler = Profiler(
            workdir, self.config.profile.start, self.config.profile.steps, run.steps
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
        written = read_rows(workdir / METRICS) if multihost.is_main() else ()
        self.alarms = Alarms(written, self.config.evals)

    def step(self, step: int) -> bool:
        """Does step `step`; whether the run stops here because it was asked to.

        Raises:
          RuntimeError: it ends here for what an evaluator found; the state is saved.
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

    def _advance(self, step: int, batch: Any) -> tuple[Any, Any]:
        with self.profiler.step(step):
            placed = multihost.to_global(batch, self.sharding)
            self.state, metrics = self.train_step(self.state, placed)
        self.in_flight.append(metrics)
        self.guard.stepped(metrics)
        return metrics, placed

    def _compiled(self, step: int, batch: Any) -> tuple[Any, Any]:
        """The first step here, and how long its compilation took."""
        say("compiling the train step ...")
        began = time.monotonic()
        with attention.recording() as sites:
            result = self._advance(step, batch)
        say(f"compiled in {time.monotonic() - began:.1f} s")
        say(f"attention: {attention.summary(sites)}")
        return result

    def _log(self, step: int, metrics: Any, *, written: bool) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.guard.check(step)
        perf = self.progress.lap(step)
        say(self.progress.line(step, values, perf))
        if written:
            stream = self.stream
            seen = {"clips_seen": stream.plan.examples(step), **stream.seen(step)}
            self.writer.metrics(step, {**values, **seen})
            self.writer.perf(step, {**perf, "perf/substituted": stream.substitutions})

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
                    self.run, self.state, due, self.context, self.writer, self.workdir, step,
                    self.alarms.earlier,
                )  # fmt: skip
                self.alarms.heard(results)

    def _on_disk(self, step: int, saved: bool) -> str:
        """Waits until everything is; what is there."""
        self.profiler.finish(step, self.state)
        with self.watchdog.doing("saving", pause=True):
            self.checkpoints.wait()
        if not saved:
            return f"step {step} was skipped and not saved, {safe_text(self.workdir)}"
        return f"saved step {step} in {self.checkpoints.folder}"

    def _stopped(self, step: int, saved: bool) -> None:
        what = self._on_disk(step, saved)
        say(
            f"{self.interrupt.name or 'another process was stopped'}: {what}; start the same "
            "command again to go on"
        )

    def _ended(self, step: int, saved: bool) -> RuntimeError:
        """The error for the alarm of an evaluator; the report shows how it came to it."""
        what, raised = self._on_disk(step, saved), self.alarms.raised
        self.writer.close()
        if multihost.is_main() and self.config.log.report:
            what += f"; report: {write_report([self.workdir], self.workdir / 'report.html')}"
        label = raised.partition(":")[0]
        return RuntimeError(
            f"stopped at step {step} of {self.run.steps}: config.evals.{raised}; {what}. Compare "
            "the objective, its targets and config.optim.lr with the recipe's; to go on from there "
            f"all the same: --config.evals.{label}.action=warn"
        )


def initial_state(run: Run) -> TrainState:
    """Fresh state, with the parameters of `config.init_from` where given."""
    state = init_state(run)
    if not run.config.init_from:
        return state
    params, report = initialise(
        run.config.init_from,
        run.parametrisation.base(state),
        run.config.model,
        rows=run.config.head_rows,
        classes=run.classes,
    )
    say(report.text())
    report.require(run.config.init_whole)
    return state_from(run, params)


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
    return results


def finish(
    params: Params,
    provenance: dict[str, Any],
    writer: MetricWriter,
    workdir: Path,
    *,
    report: bool,
) -> None:
    """Leaves the digest of the final parameters and the report."""
    digest = params_digest(params)
    say(f"finished; parameters {digest}")
    writer.close()
    if multihost.is_main():
        write_json(workdir / "run.json", {**provenance, "params_digest": digest})
        if report:
            say(f"report: {write_report([workdir], workdir / 'report.html')}")


def main() -> None:
    """The command `ivj train`."""
    flags.adopt_module_key_flags(cli)
    workdir = flags.DEFINE_string(
        "workdir", None, "Directory of the run: checkpoints, metrics, pictures, report."
    )

    def run() -> int:
        use_compile_cache(cli.COMPILE_CACHE.value)
        if not workdir.value:
            raise ValueError("no --workdir given; expected a directory for the run")
        folder = Path(workdir.value)
        job = cli.COORDINATOR.value, cli.PROCESSES.value, cli.PROCESS.value
        with multihost.joined(*job, safe=lambda: safe_text(folder)):
            return train(cli.typed_config(), folder, cli.overridden())

    cli.run(run, evaluators=True)


if __name__ == "__main__":
    main()
