"""One ingest from beginning to end: list, plan, write, sum up."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.commands.exit_codes import PassingFault
from data_pipelines.commands.lock import DirectoryLock
from data_pipelines.commands.progress import Bar, say
from data_pipelines.ingest import beam, hold_out, labels, losses, plan, presence, sources
from data_pipelines.ingest.image import IMAGE_SUFFIXES
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.pool import Outcome, run_tasks
from data_pipelines.ingest.rows import Listing, Row
from data_pipelines.ingest.work import ShardResult, ShardTask
from data_pipelines.records import manifest, split_names, storage
from data_pipelines.records.outputs import check_folder
from data_pipelines.records.remote_lock import RemoteLock, held

CLASSES_FILE = "classes.json"
REJECTED_FILE = "rejected.jsonl"
WARNINGS_FILE = "warnings.jsonl"
EXAMPLES = 3  # rejected rows that are named at the end

_AGAIN = "Finished shards are kept: solve the problem, then run the same command again"


class IngestError(RuntimeError):
    """Shards are missing; running the same command again writes them."""


class InterruptedIngest(IngestError, PassingFault):
    """The same, by a fault outside: a worker that was killed, a source that is away."""


@dataclass(frozen=True, slots=True)
class Report:
    """What an ingest did.

    Attributes:
      manifest: of the finished dataset.
      rows: clips the source listed.
      rejected: per stage.
      warnings: per kind.
      examples: `PATH: STAGE: REASON` of the first rejected rows.
      missing: rejected rows whose file is not there.
      reused: shards found complete from an earlier run.
      frames_written: frames this run decoded.
      seconds: wall time of the decoding.
    """

    manifest: manifest.Manifest
    rows: int
    rejected: Counter[str]
    warnings: Counter[str]
    examples: tuple[str, ...]
    missing: int
    reused: int
    frames_written: int
    seconds: float

    @property
    def bad_share(self) -> float:
        """Rejected rows as a share of all rows."""
        return self.rejected.total() / self.rows


def ingest(options: IngestOptions, *, quiet: bool = False) -> Report:
    """Turn the videos of a source into shards in `options.out`, or finish an earlier attempt.

    Rejected videos do not raise: compare `Report.bad_share` with `options.max_bad`.

    Raises:
      FileNotFoundError, ValueError: the source or an option is wrong, or the directory holds
        another ingest.
      RuntimeError: another ingest is running in the directory.
      IngestError: the disk is full, a worker died, or the source vanished; finished shards are
        kept.
    """
    tell: Callable[[str], None] = (lambda message: None) if quiet else say
    if storage.is_remote(options.out):
        check_folder("--out", options.out, remote=True)
    listing = _listing(options)
    notes = list(listing.notes)
    rows, classes = labels.resolve(listing.rows, options.classes_file, listing.classes, notes)
    if options.hold_out is not None:
        rows, note = hold_out.apply(rows, options.hold_out, options.hold_out_as)
        notes.append(note)
    elif classes and not any(split_names.is_held_out(row.split) for row in rows):
        notes.append(
            "no split is called test or val: what is measured on this set will be measured on "
            "training clips; --hold-out 0.1 keeps a part of them back"
        )
    for note in notes:
        tell(f"note: {note}")
    try:
        storage.make_directory(options.out)
        with held(options.out) as lock:
            return _ingest_locked(options, rows, classes, lock, tell, quiet)
    except beam.BeamError as error:
        raise InterruptedIngest(f"{error}. {_AGAIN}") from error
    except OSError as error:
        text = f"cannot write {error.filename or options.out}: {error.strerror}"
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ValueError(f"{text}; give another --out, or make it writable") from error
        raise IngestError(f"{text}. {_AGAIN}") from error


def _listing(options: IngestOptions) -> Listing:
    try:
        return sources.read(options)
    except (FileNotFoundError, sources.NothingListed) as error:
        if not storage.exists(storage.join(options.out, plan.FILE_NAME)):
            if options.media == "video" and IMAGE_SUFFIXES & set(re.findall(r"\.\w+", str(error))):
                raise ValueError(f"{error}. Of images --media image makes shards") from error
            raise
        raise InterruptedIngest(
            f"{error}. The run that was begun in {options.out} found files there: is the storage "
            f"mounted? {_AGAIN}"
        ) from error


def _ingest_locked(
    options: IngestOptions,
    rows: Sequence[Row],
    classes: tuple[str, ...],
    lock: DirectoryLock | RemoteLock,
    tell: Callable[[str], None],
    quiet: bool,
) -> Report:
    _remove_temporary(options)
    witnesses = presence.choose_witnesses(rows)
    away = presence.away(rows, witnesses)
    if away and not storage.exists(storage.join(options.out, plan.FILE_NAME)):
        raise InterruptedIngest(f"{away}. Nothing was written; run the same command again then")
    the_plan, resumed = plan.prepare(options, rows, classes)
    killed = losses.load(options.out)
    tasks = [
        (split, dataclasses.replace(losses.exclude(task, killed), witnesses=witnesses, away=away))
        for split, task in plan.assign(the_plan, options, rows)
    ]
    if resumed:
        tell(f"{options.out}: continuing an earlier run")
    _write_json_list(options.out, CLASSES_FILE, classes)
    began = time.monotonic()
    try:
        results = _write_shards(options, [task for _, task in tasks], lock, tell, quiet)
    finally:
        _remove_temporary(options)
    return _finish(options, the_plan, tasks, results, time.monotonic() - began)


def _remove_temporary(options: IngestOptions) -> None:
    """Remove what an interrupted run of ours left half written, and nobody else's files.

    On an object store there is none: what was not uploaded whole is not there.
    """
    if storage.is_remote(options.out):
        return
    lists = (CLASSES_FILE, REJECTED_FILE, WARNINGS_FILE)
    ours = {f"{n}.tmp" for n in (*lists, plan.FILE_NAME, losses.FILE_NAME, manifest.FILE_NAME)}
    part = r"idx|done|task|task\.tmp|failed|failed\.tmp|[0-9a-f]{32}"
    shard = re.compile(rf"{re.escape(options.name)}-.*\.tfrecord(\.({part}))?\.tmp")
    for name in os.listdir(options.out):
        if name in ours or shard.fullmatch(name):
            path = os.path.join(options.out, name)
            if os.path.isdir(path):  # where a Beam machine was writing
                shutil.rmtree(path)
            else:
                os.unlink(path)


def _write_shards(
    options: IngestOptions,
    tasks: Sequence[ShardTask],
    lock: DirectoryLock | RemoteLock,
    tell: Callable[[str], None],
    quiet: bool,
) -> list[ShardResult]:
    results: dict[int, ShardResult] = {}
    failures: list[str] = []
    with Bar([len(task.rows) for task in tasks], "clip", quiet) as bar:
        outcomes = _outcomes(options, tasks, lock, bar)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if outcome.result is not None:
                    results[outcome.number] = outcome.result
                    made = 0 if outcome.result.reused else outcome.result.frames
                    bar.done(outcome.number, made)
                else:
                    failures.append(_failure(options.out, tasks, outcome))
                    if not outcome.died:
                        break  # a full disk is full for the other shards too
                    tell(f"warning: going on without one shard: {failures[-1]}")
    if failures:
        more = f" (and {len(failures) - 1} more shards failed)" if len(failures) > 1 else ""
        raise InterruptedIngest(
            f"{failures[0]}{more}. {len(results)} of {len(tasks)} shards are finished. {_AGAIN}"
        )
    return [results[number] for number in range(len(tasks))]


def _outcomes(
    options: IngestOptions,
    tasks: Sequence[ShardTask],
    lock: DirectoryLock | RemoteLock,
    bar: Bar,
) -> Generator[Outcome, None, None]:
    if options.runner == "beam":
        return beam.run(options, tasks)
    return run_tasks(
        "data_pipelines.ingest.work:write_shard",
        tasks,
        options.workers,
        on_progress=bar.progress,
        stall_seconds=options.stall_seconds,
        # The kernel's lock goes on to the workers; one on an object store is renewed from here.
        keep_open=(lock.fileno(),) if isinstance(lock, DirectoryLock) else (),
    )


def _failure(out: str, tasks: Sequence[ShardTask], outcome: Outcome) -> str:
    if not outcome.died:
        return outcome.failure
    task = tasks[outcome.number]
    if outcome.item is None or outcome.item >= len(task.rows):
        return f"{task.name}: {outcome.failure}"
    row = task.rows[outcome.item]
    losses.add(out, row)
    return f"{task.name}: {outcome.failure}, at {row.name}"


def _finish(
    options: IngestOptions,
    the_plan: plan.IngestPlan,
    tasks: Sequence[tuple[str, ShardTask]],
    results: Sequence[ShardResult],
    seconds: float,
) -> Report:
    """Write rejected.jsonl, warnings.jsonl and, as the last thing, the manifest."""
    by_split: dict[str, list[ShardResult]] = {}
    for (split, _), result in zip(tasks, results, strict=True):
        by_split.setdefault(split, []).append(result)
    rejected = [line for result in results for line in result.rejected]
    warnings = [line for result in results for line in result.warnings]
    _write_lines(options.out, REJECTED_FILE, rejected)
    _write_lines(options.out, WARNINGS_FILE, warnings)
    result = manifest.Manifest(
        directory=options.out,
        name=options.name,
        schema_version=plan.schema_version(the_plan.options),
        classes=the_plan.classes,
        flip_changes_label=options.flip_changes_label,
        options={**options.record_options(), **options.hold_out_options()},
        splits={split: _split_info(members) for split, members in sorted(by_split.items())},
        rejected=len(rejected),
        partial=sum(line["kind"] == "partial" for line in warnings),
        inputs_sha256=the_plan.inputs,
    )
    manifest.save(result)
    return Report(
        manifest=result,
        rows=sum(the_plan.rows.values()),
        rejected=Counter(line["stage"] for line in rejected),
        warnings=Counter(line["kind"] for line in warnings),
        examples=tuple(
            f"{line['path']}: {line['stage']}: {line['error']}" for line in rejected[:EXAMPLES]
        ),
        missing=sum(len(result.missing) for result in results),
        reused=sum(result.reused for result in results),
        frames_written=sum(result.frames for result in results if not result.reused),
        seconds=seconds,
    )


def _split_info(results: Sequence[ShardResult]) -> manifest.SplitInfo:
    return manifest.SplitInfo(
        shards=tuple(
            manifest.ShardInfo(r.name, r.records, r.bytes, r.sha256, r.index_crc) for r in results
        ),
        records=sum(r.records for r in results),
        frames=sum(r.frames for r in results),
        label_counts=tuple(map(sum, zip(*(r.label_counts for r in results), strict=True))),
    )


def _write_json_list(out: str, name: str, values: Sequence[str]) -> None:
    text = json.dumps(list(values), indent=1, ensure_ascii=False) + "\n"
    storage.write_atomic(storage.join(out, name), text.encode())


def _write_lines(out: str, name: str, lines: Sequence[dict[str, Any]]) -> None:
    ordered = sorted(lines, key=lambda line: (line["split"], line["id"]))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered)
    storage.write_atomic(storage.join(out, name), text.encode())


def summary(report: Report) -> Iterator[str]:
    """Lines of the table shown at the end."""
    m = report.manifest
    yield f"{'split':<12}{'shards':>8}{'records':>10}{'frames':>12}{'MB':>12}"
    for name, split in m.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        yield f"{name:<12}{len(split.shards):>8}{split.records:>10}{split.frames:>12}{size:>12.1f}"
    yield f"classes {len(m.classes)}, rows listed {report.rows}"
    if report.rejected:
        stages = ", ".join(f"{stage} {count}" for stage, count in report.rejected.most_common())
        yield (
            f"rejected {report.rejected.total()} ({report.bad_share:.1%}): {stages}; "
            f"see {storage.join(m.directory, REJECTED_FILE)}"
        )
        yield from (f"  {example}" for example in report.examples)
    if report.missing:
        yield (
            f"{report.missing} of them are not there; the same command tries them again once they "
            "are"
        )
    if report.warnings:
        kinds = ", ".join(f"{kind} {count}" for kind, count in report.warnings.most_common())
        yield f"warnings: {kinds}; see {storage.join(m.directory, WARNINGS_FILE)}"
    if report.reused:
        yield f"{report.reused} shards were complete from an earlier run"
    if report.frames_written:
        rate = report.frames_written / report.seconds
        yield f"{report.frames_written} frames in {report.seconds:.1f} s, {rate:.0f} frames/s"
