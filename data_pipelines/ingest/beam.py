"""The shards of an ingest as elements of an Apache Beam pipeline.

Beam decides where each shard is written; what is written is decided by the task alone, so the
bytes are those of a local run. Around that, what differs between machines is dealt with here:

- Tasks travel as files in the output directory, elements are only their numbers: runners limit the
  size of a pipeline to some MB.
- An element may be tried several times, also at the same time. Every attempt writes into a folder
  of its own and moves the finished files into place.
- A decoder that crashes must not take the machine's Beam process with it: each shard is written
  by a worker process of `.pool`, as in a local run.
- A shard that cannot be written leaves a note instead of failing the pipeline, so that the others
  are finished.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import pickle
import shutil
import uuid
from collections.abc import Generator, Sequence
from typing import Any

from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.pool import Outcome, run_tasks
from data_pipelines.ingest.work import DONE_SUFFIX, ShardTask, finished, read_done
from data_pipelines.records.index import INDEX_SUFFIX, write_atomic

# Both names end in .tmp and begin with that of the shard: the ingest removes them when it ends.
TASK_SUFFIX = ".task.tmp"
FAILURE_SUFFIX = ".failed.tmp"


class BeamError(RuntimeError):
    """The pipeline itself failed; shards it finished are kept."""


def run(options: IngestOptions, tasks: Sequence[ShardTask]) -> Generator[Outcome, None, None]:
    """Write all shards on a Beam runner, then yield their outcomes in order.

    The output directory and the sources must be reachable under the same paths by all machines.

    Raises:
      ValueError: Beam is not installed, or does not know an option.
      BeamError: the pipeline failed.
    """
    pipeline_options = _pipeline_options(options.beam_options)
    before = [_stamp(task) for task in tasks]
    for task in tasks:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(task.path + FAILURE_SUFFIX)
        write_atomic(task.path + TASK_SUFFIX, pickle.dumps(task))
    _run_pipeline(pipeline_options, [task.path for task in tasks], options)
    for number, task in enumerate(tasks):
        yield _outcome(number, task, before[number])


def _pipeline_options(flags: Sequence[str]) -> Any:
    try:
        module = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
        raise ValueError(
            f"--runner beam needs Apache Beam ({error}): pip install 'internvideo-jax[beam]'"
        ) from error
    known = module.PipelineOptions(list(flags))
    _, unknown = _parser(module).parse_known_args(list(flags))
    if unknown:
        raise ValueError(f"--beam-options: Beam knows no {unknown[0]!r}")
    return known


def _parser(module: Any) -> Any:
    """All options of all runners, to find the misspelled ones, which Beam would ignore."""
    parser = module._BeamArgumentParser(add_help=False)
    for kind in module.PipelineOptions.__subclasses__():
        with contextlib.suppress(Exception):
            kind._add_argparse_args(parser)
    return parser


def _run_pipeline(pipeline_options: Any, paths: Sequence[str], options: IngestOptions) -> None:
    beam = importlib.import_module("apache_beam")
    try:
        with beam.Pipeline(options=pipeline_options) as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(list(paths))
                | "Spread" >> beam.Reshuffle()
                | "Write" >> beam.Map(write, min(1, options.workers), options.stall_seconds)
            )
    except Exception as error:  # a runner raises what it likes
        raise BeamError(f"the Beam pipeline failed: {type(error).__name__}: {error}") from error


def write(path: str, workers: int, stall_seconds: float) -> str:
    """Write the shard whose task lies beside `path`; runs on a machine of the runner.

    Returns:
      The path, for the runner's log.
    """
    with open(path + TASK_SUFFIX, "rb") as file:
        task: ShardTask = pickle.load(file)
    if finished(task) is not None:
        return path
    folder = f"{path}.{uuid.uuid4().hex}.tmp"
    os.mkdir(folder)
    try:
        attempt = dataclasses.replace(task, directory=folder)
        [outcome] = run_tasks(
            "data_pipelines.ingest.work:write_shard",
            [attempt],
            workers,
            stall_seconds=stall_seconds,
        )
        if outcome.result is None:
            note = {"failure": outcome.failure, "died": outcome.died, "item": outcome.item}
            write_atomic(path + FAILURE_SUFFIX, json.dumps(note).encode())
            return path
        for suffix in ("", INDEX_SUFFIX, DONE_SUFFIX):  # what says that it is done comes last
            os.replace(attempt.path + suffix, task.path + suffix)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def _outcome(number: int, task: ShardTask, before: int | None) -> Outcome:
    try:
        with open(task.path + FAILURE_SUFFIX, encoding="utf-8") as file:
            return Outcome(number, **json.load(file))
    except FileNotFoundError:
        pass
    try:
        result = read_done(task)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Outcome(number, failure=f"{task.name}: no machine finished it ({error})")
    if result.plan != task.plan:
        return Outcome(number, failure=f"{task.name}: was written by another ingest")
    return Outcome(number, dataclasses.replace(result, reused=_stamp(task) == before))


def _stamp(task: ShardTask) -> int | None:
    try:
        return os.stat(task.path + DONE_SUFFIX).st_mtime_ns
    except FileNotFoundError:
        return None
