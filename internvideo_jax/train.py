"""The training loop. It knows no model, no objective and no data set by name.

    ivj train --config=configs/videomae/pretrain.py:size=base \\
        --workdir=runs/pretrain --config.data.train=shards/

Starting the same command again continues where the newest checkpoint stands, to the bit.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import sys
import time
from collections.abc import Collection
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
from internvideo_jax.run.build import Run, build
from internvideo_jax.run.guard import Guard
from internvideo_jax.run.step import init_state, make_train_step, state_from
from internvideo_jax.runtime.interrupt import Interrupt
from internvideo_jax.runtime.watchdog import Watchdog
from internvideo_jax.telemetry.profile import Profiler
from internvideo_jax.telemetry.progress import Progress
from internvideo_jax.telemetry.report import write_report
from internvideo_jax.telemetry.writer import MetricWriter
from internvideo_jax.types import TrainState

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

    # Continue, start from other weights, or start fresh. The step number is the data position.
    checkpoints = Checkpoints(workdir, config.checkpoint)
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
    frozen, digests = load_frozen(run.frozen, config.seed, say)
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
        earlier = []
        state = initial_state(run)

    provenance = {
        "config": as_plain(config),
        "versions": versions(),
        "git": git_revision(),
        "devices": devices(),
        "data": stream.identity,
        "classes": run.classes,
        "frozen": digests,
        "history": earlier,
    }
    if multihost.is_main():
        write_json(workdir / "run.json", provenance)
    writer = MetricWriter(workdir, resume_step=start, tensorboard=config.log.tensorboard)
    profiler = Profiler(workdir, config.profile.start, config.profile.steps, run.steps)
    progress = Progress(run.steps, stream.plan.mean_batch(), run.flops)
    train_step = make_train_step(run, frozen)
    sharding = batch_sharding(run.mesh)
    in_flight: collections.deque[Any] = collections.deque()
    guard = Guard(
        checkpoints,
        config.max_nonfinite,
        start,
        int(state.nonfinite),
        lambda text: say(text, sys.stderr),
    )

    watchdog = Watchdog(config.watchdog, workdir, jax.process_index())
    asked = Interrupt(shared=multihost.takes_notices())
    with asked as interrupt, watchdog, attention.recording() as sites:
        for step in range(start + 1, run.steps + 1):
            with progress.waiting(), watchdog.doing("waiting for data"):
                batch = next(stream)
            profiler.before(step, state)
            first = step == start + 1
            if first:
                say("compiling the train step ...")
            began = time.monotonic()
            with profiler.step(step):
                placed = multihost.to_global(batch, sharding)
                state, metrics = train_step(state, placed)
            in_flight.append(metrics)
            guard.stepped(metrics)
            if first:
                say(f"compiled in {time.monotonic() - began:.1f} s")
                say(f"attention: {attention.summary(sites)}")
            if len(in_flight) > IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())

            if profiler.ends(step):
                with progress.paused():
                    say(profiler.finish(step, state, lambda x=placed: train_step.text(run, x)))

            last = step == run.steps
            regular = step % config.log.every == 0 or last or step == 1
            log = regular or first
            stop = multihost.stop_after(step, interrupt.requested, agree=log)
            if log:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                guard.check(step)
                perf = progress.lap(step)
                say(progress.line(step, values, perf))
                # The extra line after a restart is not written: no uninterrupted run has it.
                if regular:
                    seen = {"clips_seen": stream.plan.examples(step), **stream.seen(step)}
                    writer.metrics(step, {**values, **seen})
                    writer.perf(step, {**perf, "perf/substituted": stream.substitutions})

            due = {
                label: evaluator
                for label, evaluator in config.evals.items()
                if (last and evaluator.every >= 0)
                or (evaluator.every > 0 and step % evaluator.every == 0)
            }
            if due:
                with progress.paused(), watchdog.doing("evaluating", pause=True):
                    evaluate(run, state, due, context, writer, workdir, step)

            # Saving comes after logging and evaluating, so a restart never misses their rows.
            saved = False
            if step % config.checkpoint.every == 0 or last or stop or guard.owes:
                with progress.paused(), watchdog.doing("saving", pause=True):
                    saved = guard.save(step, state, provenance, last=last)
            if stop and not last:
                profiler.finish(step, state)
                with watchdog.doing("saving", pause=True):
                    checkpoints.wait()
                what = f"saved step {step} in {checkpoints.folder}"
                if not saved:
                    what = f"step {step} was skipped and not saved, {safe_text(workdir)}"
                say(
                    f"{interrupt.name or 'another process was stopped'}: {what}; start the same "
                    "command again to go on"
                )
                return interrupt.exit_code or 128 + signal.SIGTERM
            watchdog.stepped(step)

    checkpoints.wait()
    finish(state, provenance, writer, workdir, report=config.log.report)
    stream.close()
    checkpoints.close()
    return 0


def initial_state(run: Run) -> TrainState:
    """Fresh state, with the parameters of `config.init_from` where given."""
    state = init_state(run)
    if not run.config.init_from:
        return state
    params, report = initialise(
        run.config.init_from,
        state.params,
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
) -> None:
    """Runs the evaluators that are due, on the averaged parameters where there are any."""
    results = run_evaluators(
        due,
        context,
        state.params if state.ema is None else state.ema,
        folder=workdir,
        provenance={"step": step, "params": "params" if state.ema is None else "ema"},
    )
    say(f"step {step} | {headline(results)}")
    writer.metrics(
        step,
        {
            f"eval/{label}/{name}": value
            for label, result in results.items()
            for name, value in result.metrics.items()
        },
    )


def finish(
    state: TrainState,
    provenance: dict[str, Any],
    writer: MetricWriter,
    workdir: Path,
    *,
    report: bool,
) -> None:
    """Leaves the digest of the final parameters and the report."""
    digest = params_digest(state.params)
    say(f"finished; parameters {digest}")
    writer.close()
    if multihost.is_main():
        write_json(workdir / "run.json", {**provenance, "params_digest": digest})
        if report:
            say(f"report: {write_report([workdir], workdir / 'report.html')}")


def main() -> None:
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

    cli.run(run)


if __name__ == "__main__":
    main()
