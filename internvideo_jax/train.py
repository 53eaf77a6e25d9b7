"""The training loop. It knows no model, no objective and no dataset by name.

    ivj train --config=configs/videomae/pretrain.py:size=base \\
        --workdir=runs/pretrain --config.data.train=shards/

Starting the same command again continues where the newest checkpoint stands, to the bit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from typing import Any

import jax
from absl import flags

from data_pipelines.records.outputs import check_folder
from data_pipelines.stream.pipeline import TrainStream
from internvideo_jax import cli
from internvideo_jax.checkpoint import settings
from internvideo_jax.checkpoint.frozen import check_frozen, load_frozen
from internvideo_jax.checkpoint.initial import check_source, initialise
from internvideo_jax.checkpoint.learned import SECONDS, learned
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.checkpoint.metadata import devices, git_revision, params_digest, versions
from internvideo_jax.checkpoint.remote_steps import RemoteSteps
from internvideo_jax.checkpoint.run_folder import RunFolder
from internvideo_jax.checkpoint.steps import safe_text
from internvideo_jax.config import TrainConfig, as_plain
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.run import (
    check_evaluators,
    write_json,
)
from internvideo_jax.parallel import multihost
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.parallel.mesh import batch_share
from internvideo_jax.parallel.multihost import say
from internvideo_jax.recipes.loading import leaves
from internvideo_jax.run import seconds
from internvideo_jax.run.build import Run, build
from internvideo_jax.run.loop import REPORT, Begun, Loop, leave_report
from internvideo_jax.run.step import init_state, state_from
from internvideo_jax.runtime.interrupt import Interrupt
from internvideo_jax.runtime.watchdog import Watchdog
from internvideo_jax.telemetry.profile import FOLDER as PROFILE
from internvideo_jax.telemetry.trackers.base import TrackedRun
from internvideo_jax.telemetry.trackers.delivery import (
    Trackers,
    check_trackers,
    run_id,
    tracked,
)
from internvideo_jax.telemetry.writer import MetricWriter, last_step
from internvideo_jax.types import Params, TrainState


def train(
    config: TrainConfig,
    workdir: str | os.PathLike[str],
    given: Collection[str] = (),
    recipe: str = "",
) -> int:
    """Runs or continues one training run; returns the exit code (0 = finished).

    Args:
      workdir: a local folder, or one on an object store.
      given: fields that the command line sets, which a small set does not change (small.py).
      recipe: what the command line calls it, for the trackers.

    Raises:
      ValueError: another process trains in this workdir.
    """
    check_folder("--workdir", workdir, remote=True)
    run = build(config, given=given)
    # The other processes write nothing before they have met the main one in the constructor of the
    # checkpoints.
    folder = RunFolder(workdir, but=[PROFILE])
    with folder.held(config.checkpoint) as remote:
        return train_locked(run, folder, remote, recipe)


def train_locked(run: Run, folder: RunFolder, remote: RemoteSteps | None, recipe: str) -> int:
    """`train`, once nobody else writes in the workdir."""
    config, workdir = run.config, folder.local
    check_trackers(config.log.trackers)
    if config.init_whole and not config.init_from:
        raise ValueError(
            "this recipe goes on from the weights of an earlier stage: set config.init_from to its "
            "run, or config.init_whole to () to start without"
        )
    context = EvalContext(run.model, run.mesh, config.data, config.seed, classes=run.classes)
    check_evaluators(config.evals, context)
    checkpoints = Checkpoints(workdir, config.checkpoint, remote)
    begun = begin(run, checkpoints)
    if multihost.is_main():
        write_json(workdir / "run.json", begun.provenance)
    with tracked(config.log.trackers, tracked_run(run, begun, folder, recipe)) as trackers:
        trackers.file(workdir / "run.json")
        writer = MetricWriter(workdir, resume_step=begun.start, trackers=trackers)
        watchdog = Watchdog(config.watchdog, workdir, jax.process_index(), folder.push_file)
        asked = Interrupt(shared=multihost.takes_notices())
        with asked as interrupt, watchdog:
            loop = Loop(run, begun, folder, context, checkpoints, writer, watchdog, interrupt)
            for step in range(begun.start + 1, run.steps + 1):
                if loop.step(step):
                    return interrupt.exit_code or 128 + signal.SIGTERM
        checkpoints.wait()
        params = run.parametrisation.of(loop.state)
        finish(params, begun.provenance, writer, folder, trackers, report=config.log.report)
    folder.push()
    begun.stream.close()
    checkpoints.close()
    return 0


def tracked_run(run: Run, begun: Begun, folder: RunFolder, recipe: str) -> TrackedRun | None:
    """What trackers are told of the run; None where there are none on this process."""
    workdir = folder.local
    if not (run.config.log.trackers and multihost.is_main()):
        return None
    return TrackedRun(
        id=run_id(workdir),
        name=folder.name if folder.remote else workdir.resolve().name,
        workdir=workdir,
        config=dict(leaves(as_plain(run.config))),
        recipe=recipe,
        start=begun.start,
        seen=last_step(workdir),
    )


def begin(run: Run, checkpoints: Checkpoints) -> Begun:
    """Continues, starts from other weights, or starts fresh. The step is the data position."""
    config = run.config
    start = checkpoints.latest() or 0
    if config.init_from and not start:
        check_source(config.init_from)
    share = batch_share(run.mesh)
    stream = TrainStream(
        config.data,
        process=share.number,
        processes=share.count,
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
            say(check_frozen(digests, stored, checkpoints.place))
        changed = checkpoints.check_settings(start, run.plan.shapes, config)
        earlier = settings.history(checkpoints.meta(start), start, changed)
        state = checkpoints.restore(start, run.plan.shapes, run.plan.shardings)
        say(f"continuing at step {start} from {checkpoints.place}")
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


def finish(
    params: Params,
    provenance: dict[str, Any],
    writer: MetricWriter,
    folder: RunFolder,
    trackers: Trackers,
    *,
    report: bool,
) -> None:
    """Leaves the digest of the final parameters and the report."""
    digest, workdir = params_digest(params), folder.local
    say(f"finished; parameters {digest}")
    writer.close()
    if multihost.is_main():
        write_json(workdir / "run.json", {**provenance, "params_digest": digest})
        trackers.file(workdir / "run.json")
        if report:
            say(f"report: {leave_report(folder)}")
            trackers.file(workdir / REPORT)
    trackers.end("finished")


def main() -> None:
    """The command `ivj train`."""
    flags.adopt_module_key_flags(cli)
    workdir = flags.DEFINE_string(
        "workdir",
        None,
        "Directory of the run, local or on an object store: checkpoints, metrics, report.",
    )

    def run() -> int:
        use_compile_cache(cli.COMPILE_CACHE.value)
        place = workdir.value
        if not place:
            raise ValueError("no --workdir given; expected a directory for the run")
        job = cli.COORDINATOR.value, cli.PROCESSES.value, cli.PROCESS.value
        with multihost.joined(*job, safe=lambda: safe_text(place)):
            return train(cli.typed_config(), place, cli.overridden(), cli.recipe())

    cli.run(run, evaluators=True)


if __name__ == "__main__":
    main()
