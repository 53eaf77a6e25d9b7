"""Read everything back: every checksum, every record, every frame."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.commands.progress import Bar
from data_pipelines.ingest.pool import JobProgress, run_tasks
from data_pipelines.records import encoded, manifest, schema, storage
from data_pipelines.records.index import CorruptRecordError
from data_pipelines.records.reader import RecordSource

# One broken disk can damage every record; the first few say where.
_FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class VerifyTask:
    """One shard to read; `crashed` as in `ingest.pool`.

    `named` says that its records hold the names of their classes, as an ingest writes them.
    """

    directory: str
    shard: manifest.ShardInfo
    classes: tuple[str, ...]
    named: bool
    crashed: Mapping[int, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Of the shard."""
        return storage.join(self.directory, self.shard.name)


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """What reading one shard gave: faults as sentences, totals, and the ids it holds."""

    faults: tuple[str, ...]
    records: int = 0
    frames: int = 0
    label_counts: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()


def verify(directory: str, workers: int, *, quiet: bool = False) -> tuple[list[str], int, int]:
    """Check a finished dataset.

    Every shard is compared with the manifest and its index, every record with its checksum and
    the schema, and every frame is decoded.

    Args:
      directory: output of an ingest.
      workers: processes; 0 reads in this process.
      quiet: no progress bar.

    Returns:
      Faults as sentences (none when all is well), records read, frames decoded.

    Raises:
      FileNotFoundError, ValueError: there is no readable manifest.
    """
    found = manifest.load_alone(directory)
    named = "adopted" not in found.options
    tasks = [
        VerifyTask(found.directory, shard, found.classes, named)
        for split in found.splits.values()
        for shard in split.shards
    ]
    checks: dict[int, ShardCheck] = {}
    with Bar([task.shard.records for task in tasks], "record", quiet) as bar:
        outcomes = run_tasks(
            "data_pipelines.tools.verify:check", tasks, workers, on_progress=bar.progress
        )
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                result = outcome.result or ShardCheck(
                    (f"{tasks[outcome.number].path}: {outcome.failure}",)
                )
                checks[outcome.number] = result
                bar.done(outcome.number, result.frames)
    difference = manifest.check_classes(found)
    faults, number = [difference] if difference else [], 0
    for name, split in found.splits.items():
        members = [checks[number + i] for i in range(len(split.shards))]
        number += len(members)
        faults += [fault for member in members for fault in member.faults]
        # Totals can only be compared when everything could be read.
        if not any(member.faults for member in members):
            faults += _check_totals(name, split, members)
    records = sum(check.records for check in checks.values())
    return faults, records, sum(check.frames for check in checks.values())


def _check_totals(name: str, split: manifest.SplitInfo, checks: list[ShardCheck]) -> list[str]:
    faults = []
    frames = sum(check.frames for check in checks)
    if frames != split.frames:
        faults.append(f"split {name}: {frames} frames, the manifest says {split.frames}")
    counts = tuple(map(sum, zip(*(check.label_counts for check in checks), strict=True)))
    if counts != split.label_counts:
        faults.append(f"split {name}: records per class differ from the manifest")
    twice = [key for key, n in Counter(i for c in checks for i in c.ids).items() if n > 1]
    if twice:
        faults.append(f"split {name}: {len(twice)} ids occur twice, for example {twice[0]!r}")
    return faults


def check(task: VerifyTask, progress: JobProgress) -> ShardCheck:
    """Read one shard completely (a job for `ingest.pool`)."""
    try:
        index = manifest.check_shard(task.path, task.shard)
    except (FileNotFoundError, ValueError) as error:
        return ShardCheck((str(error),))
    faults: list[str] = []
    if storage.sha256(task.path) != task.shard.sha256:
        faults.append(f"{task.path}: sha256 differs from the manifest")
    source = RecordSource([task.path], indexes=[index])
    frames = 0
    label_counts = [0] * len(task.classes)
    ids = []
    for i in range(len(source)):
        progress.item(i)
        if len(faults) > _FAULTS_SHOWN:
            faults.append(f"{task.path}: more faults follow; stopped after record {i}")
            break
        _, _, offset = source.locate(i)
        try:
            if i in task.crashed:
                raise schema.SchemaError(task.crashed[i])
            data = source[i]
            record = schema.decode(data)
            source.check_table(i, data)
            _check_labels(record, task)
            _check_record(record, source.num_frames(i))
        except CorruptRecordError as error:
            faults.append(str(error))
        except ValueError as error:
            faults.append(f"{task.path}: record {i} at byte {offset}: {error}")
        else:
            frames += len(record.frames)
            ids.append(record.media_id)
            for label in record.labels:
                label_counts[label] += 1
            progress.tick(len(record.frames))
    progress.item(len(source))
    return ShardCheck(tuple(faults), len(source), frames, tuple(label_counts), tuple(ids))


def _check_labels(record: schema.Record, task: VerifyTask) -> None:
    count = len(task.classes)
    if any(not 0 <= label < count for label in record.labels):
        raise schema.SchemaError(f"label {record.labels} outside the {count} classes")
    pairs = [*zip(record.labels, record.label_names, strict=False)]
    pairs += [(s.label, s.label_name) for s in record.segments if s.label_name]
    pairs += [pair for b in record.boxes for pair in zip(b.labels, b.label_names, strict=False)]
    for label, name in pairs if task.named else ():
        if not 0 <= label < count or task.classes[label] != name:
            known = repr(task.classes[label]) if 0 <= label < count else "no such class"
            raise schema.SchemaError(f"calls class {label} {name!r}, the manifest {known}")


def _check_record(record: schema.Record, indexed_frames: int) -> None:
    if len(record.frames) != indexed_frames:
        raise schema.SchemaError(f"{len(record.frames)} frames, the index says {indexed_frames}")
    times = np.asarray(record.timestamps_us)
    if np.any(times[1:] <= times[:-1]):
        raise schema.SchemaError("frame times do not increase")
    for i, frame in enumerate(record.frames):
        try:
            encoded.decode_frame(i, frame, (record.height, record.width))
        except ValueError as error:
            raise schema.SchemaError(str(error)) from error
