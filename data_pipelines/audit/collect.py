"""The fingerprints of a set: one pass over its shards, kept by shard; none is read twice.

A file is named by the content of its shard, so it serves every audit that shares the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.audit import fingerprints
from data_pipelines.commands.progress import Bar
from data_pipelines.ingest.pool import JobProgress, run_tasks
from data_pipelines.records import manifest, storage
from data_pipelines.records.dataset import Dataset, FrameBuffer, UnreadableRecordError
from data_pipelines.records.index import write_atomic
from data_pipelines.records.reader import RecordSource

JOB = "data_pipelines.audit.collect:collect_shard"


@dataclass(frozen=True, slots=True)
class CollectTask:
    """One shard, and where its fingerprints go; fields as the worker pool asks for them."""

    directory: str
    shard: manifest.ShardInfo
    out: str
    crashed: Mapping[int, str] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ShardPrints:
    """The fingerprints of one shard, read from its files.

    Attributes:
      ids, labels: of the records; label -1 without one.
      begin: (R + 1,) where the pictures of each begin.
      period: (R,) us between them.
      hashes: (P,) uint64.
      decoded: frames that were decoded.
      unreadable: records that could not be read.
    """

    stem: str
    ids: Sequence[str]
    labels: np.ndarray
    begin: np.ndarray
    period: np.ndarray
    hashes: np.ndarray
    decoded: int
    unreadable: int

    def pictures(self) -> np.ndarray:
        """(P, SIDE, SIDE) uint8, on disk."""
        return np.load(f"{self.stem}.npy", mmap_mode="r")


@dataclasses.dataclass(frozen=True)
class SplitPrints:
    """The fingerprints of a split.

    Attributes:
      first: number of the first record of every shard, and behind them the number of all.
    """

    manifest: manifest.Manifest
    split: str
    shards: tuple[ShardPrints, ...]
    first: np.ndarray

    def __len__(self) -> int:
        return int(self.first[-1])

    def locate(self, record: int) -> tuple[ShardPrints, int]:
        """The shard of a record, and its number there."""
        shard = int(np.searchsorted(self.first, record, side="right")) - 1
        return self.shards[shard], record - int(self.first[shard])

    def of(self, record: int) -> tuple[np.ndarray, int]:
        """Pictures of a record (T, SIDE, SIDE), and us between them."""
        shard, at = self.locate(record)
        span = slice(int(shard.begin[at]), int(shard.begin[at + 1]))
        return shard.pictures()[span], int(shard.period[at])

    def id_of(self, record: int) -> str:
        """The id of a record, or its number where it has none."""
        shard, at = self.locate(record)
        return shard.ids[at] or f"record {record}"

    def label_of(self, record: int) -> str:
        """The name of its class; empty without one."""
        shard, at = self.locate(record)
        label = int(shard.labels[at])
        return self.manifest.classes[label] if 0 <= label < len(self.manifest.classes) else ""


def collect(
    found: manifest.Manifest, split: str, folder: str, workers: int, *, quiet: bool = False
) -> SplitPrints:
    """The fingerprints of a split; shards that were seen before are not read again.

    Raises:
      ValueError: a set without pixels, or shards that do not fit their manifest.
      RuntimeError: a worker that failed on a shard.
    """
    if found.media == "features":
        raise ValueError(f"{found.directory} has no pixels to compare")
    os.makedirs(folder, exist_ok=True)
    shards = found.split(split).shards
    stems = [os.path.join(folder, f"{shard.sha256}-v{fingerprints.VERSION}") for shard in shards]
    tasks = [
        CollectTask(found.directory, shard, stem)
        for shard, stem in zip(shards, stems, strict=True)
        if not os.path.exists(f"{stem}.json")
    ]
    with (
        Bar([task.shard.records for task in tasks], "record", quiet or not tasks) as bar,
        contextlib.closing(run_tasks(JOB, tasks, workers, on_progress=bar.progress)) as ended,
    ):
        for outcome in ended:
            if outcome.failure:
                raise RuntimeError(f"{tasks[outcome.number].shard.name}: {outcome.failure}")
            bar.done(outcome.number, outcome.result)
    read = tuple(map(_read, stems))
    return SplitPrints(found, split, read, np.cumsum([0] + [len(each.ids) for each in read]))


def collect_shard(task: CollectTask, progress: JobProgress) -> int:
    """Writes the fingerprints of one shard (a job for `ingest.pool`); frames decoded."""
    path = storage.join(task.directory, task.shard.name)
    source = RecordSource([path], indexes=[manifest.check_shard(path, task.shard)])
    # Class names are not needed here, and so not checked against the records.
    about = manifest.Manifest(task.directory, "", 0, (), False, {"adopted": True}, {})
    dataset, buffer = Dataset(about, "", source), FrameBuffer()
    ids, labels, counts, periods, pictures = [], [], [], [], []
    decoded = unreadable = 0
    for number in range(len(dataset)):
        progress.item(number)
        name, label = "", -1
        found = fingerprints.Fingerprint(_none(), fingerprints.PERIOD_US, 0)
        try:
            if number in task.crashed:
                raise UnreadableRecordError(task.crashed[number])
            record = dataset.load(number)
            name, label = record.media_id, record.labels[0] if record.labels else -1
            found = fingerprints.fingerprint(dataset, number, buffer)
        except UnreadableRecordError:
            unreadable += 1
        ids.append(name)
        labels.append(label)
        counts.append(len(found.pictures))
        periods.append(found.period_us)
        pictures.append(found.pictures)
        decoded += found.decoded
        progress.tick(found.decoded)
    progress.item(len(dataset))
    stacked = np.concatenate([_none(), *pictures])
    _write_array(f"{task.out}.npy", stacked)
    content = {
        "ids": ids,
        "labels": labels,
        "pictures": counts,
        "period_us": periods,
        "hashes": fingerprints.hashes(stacked).tolist(),
        "decoded": decoded,
        "unreadable": unreadable,
    }
    write_atomic(f"{task.out}.json", json.dumps(content).encode())  # last: now it is complete
    return decoded


def splits_of(found: manifest.Manifest) -> Iterator[str]:
    """The splits that have records."""
    return (name for name, split in found.splits.items() if split.records)


def _none() -> np.ndarray:
    return np.empty((0, fingerprints.SIDE, fingerprints.SIDE), np.uint8)


def _write_array(path: str, values: np.ndarray) -> None:
    with open(f"{path}.tmp", "wb") as file:
        np.save(file, values)
    os.replace(f"{path}.tmp", path)


def _read(stem: str) -> ShardPrints:
    with open(f"{stem}.json", encoding="utf-8") as file:
        content = json.load(file)
    return ShardPrints(
        stem,
        content["ids"],
        np.array(content["labels"], np.int64),
        np.cumsum([0, *content["pictures"]]),
        np.array(content["period_us"], np.int64),
        np.array(content["hashes"], np.uint64),
        content["decoded"],
        content["unreadable"],
    )
