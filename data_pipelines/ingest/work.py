"""Write one shard: the unit of work, of restart and of failure."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.ingest import alone
from data_pipelines.ingest.annotate import Placed, place
from data_pipelines.ingest.container import Note, VideoError
from data_pipelines.ingest.decode import DecodedClip, DecodeOptions
from data_pipelines.ingest.media import load_clip
from data_pipelines.ingest.pool import JobProgress
from data_pipelines.ingest.presence import Presence, missing
from data_pipelines.ingest.rows import Row
from data_pipelines.records import schema, storage
from data_pipelines.records.index import INDEX_SUFFIX, IndexFileError, read_index
from data_pipelines.records.reader import ShardWriter

DONE_SUFFIX = ".done"


@dataclass(frozen=True, slots=True)
class ShardTask:
    """What to write.

    Attributes:
      directory, name: of the shard file.
      plan: digest of the plan the task belongs to.
      rows: clips in record order.
      classes: class names by index.
      options: how to decode.
      crashed: rows, by position, that are known to take a worker down, and how.
      witnesses, away: what the run knows of the source, see `.presence`.
    """

    directory: str
    name: str
    plan: str
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    options: DecodeOptions
    crashed: Mapping[int, str] = field(default_factory=dict)
    witnesses: tuple[str, ...] = ()
    away: str = ""

    @property
    def path(self) -> str:
        """Of the shard."""
        return storage.join(self.directory, self.name)


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What was written; the `.done` file beside the shard holds the same.

    Attributes:
      rejected: one mapping per row that gave no record: path, id, split, stage, error, bytes.
      warnings: one mapping per remark on a record: path, id, split, kind, detail.
      reused: the shard was already there.
      missing: positions of the rejected rows whose file was not there; a later run tries again
        once it is.
    """

    name: str
    plan: str
    records: int
    frames: int
    bytes: int
    sha256: str
    index_crc: int
    label_counts: tuple[int, ...]
    rejected: tuple[dict[str, Any], ...]
    warnings: tuple[dict[str, Any], ...]
    reused: bool = False
    missing: tuple[int, ...] = ()


def write_shard(task: ShardTask, progress: JobProgress) -> ShardResult:
    """Write a shard, its index and its `.done` file, or find that they are there already.

    The bytes depend on the task alone, so a restart after any interruption gives the same shard.

    Raises:
      RuntimeError: the shard cannot be written, for example because the disk is full.
      SourceVanished: the files of the source are gone.
    """
    done = finished(task)
    if done is not None:
        progress.item(len(task.rows))
        return done
    try:
        for suffix in (DONE_SUFFIX, INDEX_SUFFIX, ""):
            storage.remove(task.path + suffix)
        return _write(task, progress)
    except ConnectionError:
        raise  # not the disk: the process that wanted the shard is gone
    except OSError as error:
        raise RuntimeError(f"cannot write {task.path}: {error.strerror or error}") from error


def _write(task: ShardTask, progress: JobProgress) -> ShardResult:
    class_index = {name: index for index, name in enumerate(task.classes)}
    label_counts = [0] * len(task.classes)
    rejected, warnings, absent = [], [], []
    presence = Presence(task.rows, task.witnesses, task.away)
    with ShardWriter(task.path) as writer:
        for position, row in enumerate(task.rows):
            progress.item(position)
            about = {"path": row.name, "id": row.id, "split": row.split}
            try:
                clip = _clip(task, position, progress)
                placed = place(row.segments, row.boxes, clip.start_us, clip.end_us, class_index)
            except VideoError as error:
                if not row.problem and presence.check(row.path):
                    absent.append(position)
                size = _size(row.path)
                rejected.append({**about, "stage": error.stage, "error": str(error), "bytes": size})
                continue
            if clip.notes:  # a file that went away while it was read looks damaged
                presence.check(row.path)
            labels = tuple(class_index[label] for label in row.labels)
            writer.append(schema.encode(_record(row, labels, clip, placed)), len(clip.frames))
            for label in labels:
                label_counts[label] += 1
            notes = [*clip.notes, *(Note("annotation", remark) for remark in placed.remarks)]
            warnings.extend({**about, "kind": note.kind, "detail": note.detail} for note in notes)
            progress.tick(len(clip.frames))
        progress.item(len(task.rows))
    result = ShardResult(
        name=task.name,
        plan=task.plan,
        records=writer.count,
        frames=writer.frames,
        bytes=writer.bytes,
        sha256=writer.sha256,
        index_crc=writer.index_crc,
        label_counts=tuple(label_counts),
        rejected=tuple(rejected),
        warnings=tuple(warnings),
        missing=tuple(absent),
    )
    values = dataclasses.asdict(result)
    if not absent:
        del values["missing"]
    storage.write_atomic(task.path + DONE_SUFFIX, json.dumps(values).encode())
    return result


def _clip(task: ShardTask, position: int, progress: JobProgress) -> DecodedClip:
    row = task.rows[position]
    if row.problem:
        raise VideoError("label", row.problem)
    if position in task.crashed:
        raise VideoError("decode", task.crashed[position])
    if row.path.startswith(alone.SCHEME):
        return alone.clip(row)
    return load_clip(row.path, task.options, row.start, row.end, progress.tick)


def _record(row: Row, labels: tuple[int, ...], clip: DecodedClip, placed: Placed) -> schema.Record:
    return schema.Record(
        media_id=row.id,
        frames=clip.frames,
        timestamps_us=clip.timestamps_us,
        fps=clip.fps,
        height=clip.height,
        width=clip.width,
        source_height=clip.source_height,
        source_width=clip.source_width,
        labels=labels,
        label_names=row.labels,
        captions=row.captions,
        start_us=clip.start_us,
        end_us=clip.end_us,
        filename=row.name,
        extra=row.extra,
        media_type=clip.media_type,
        audio=clip.audio,
        segments=placed.segments,
        boxes=placed.boxes,
        turns=row.turns,
    )


def read_done(task: ShardTask) -> ShardResult:
    """What the `.done` file of a shard says, unchecked; raises what an unreadable file does."""
    values = {"missing": (), **json.loads(storage.read_text(task.path + DONE_SUFFIX))}
    for name in ("label_counts", "rejected", "warnings", "missing"):
        values[name] = tuple(values[name])
    return ShardResult(**values)


def finished(task: ShardTask) -> ShardResult | None:
    """The result of an earlier run, if shard and index are still exactly what it wrote.

    Not so if a file that was missing then is there now. A shard on an object store, which takes it
    whole or not at all, is not read again: its size and its index tell it.
    """
    try:
        done = dataclasses.replace(read_done(task), reused=True)
        index = read_index(task.path)
        if (
            done.plan != task.plan
            or storage.size(task.path) != done.bytes
            or index.crc != done.index_crc
            or len(index.entries) != done.records
            or (not storage.is_remote(task.path) and storage.sha256(task.path) != done.sha256)
            or any(not missing(task.rows[position].path) for position in done.missing)
        ):
            return None
    except (FileNotFoundError, IndexFileError, ValueError, LookupError, TypeError):
        return None
    return done


def _size(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return None
