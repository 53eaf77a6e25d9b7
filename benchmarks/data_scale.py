"""Rate and memory over many files, many batches and many records. Needs Linux (/proc)."""

from __future__ import annotations

import csv
import dataclasses
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from data_pipelines.config import DataConfig
from data_pipelines.records import manifest
from data_pipelines.records.index import ENTRY, INDEX_SUFFIX, OVERHEAD, write_index
from data_pipelines.stream.pipeline import TrainStream

ROOT = Path(__file__).resolve().parents[1]
SECONDS_PER_FILE = 2.0
SHARD_RECORDS = 1000
RECORD_BYTES, RECORD_FRAMES = 6_400_000, 300  # ten seconds
BLOCK_BYTES = 16 * (RECORD_FRAMES + 4)  # of a frame table: a part per frame, and a head


def resident(pid: int | str = "self") -> int:
    """Bytes of memory a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def highest(pid: int) -> int:
    """Most bytes of memory a process has held; unlike ru_maxrss without those of its parent."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) * 1024 if found else 0  # it has ended


def _quarters(samples: Sequence[int]) -> tuple[int, int]:
    """Medians of the second and of the last quarter; the first one is still filling up."""
    quarter = max(1, len(samples) // 4)
    return int(median(samples[quarter : 2 * quarter] or samples)), int(median(samples[-quarter:]))


@dataclasses.dataclass(frozen=True)
class Ingested:
    """What one ingest process took; memory in bytes."""

    frames: int
    cpu_seconds: float
    peak: int
    early: int
    late: int


def ingest_many(clips: Sequence[Path], files: int, out: Path) -> Ingested:
    """Ingests the beginnings of `files` files, which are the clips under many names.

    Raises:
      RuntimeError: the ingest failed; with its message.
    """
    table = out.with_suffix(".csv")
    links = out.with_suffix(".videos")
    links.mkdir()
    with open(table, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path"])
        for i in range(files):
            link = links / f"{i:06d}{clips[i % len(clips)].suffix}"
            link.symlink_to(clips[i % len(clips)].resolve())
            rows.writerow([link])
    command = [
        *(sys.executable, "-m", "data_pipelines.ingest", "--quiet", "--workers", "0"),
        *("--source", table, "--out", out, "--max-seconds", SECONDS_PER_FILE, "--shard-mb", 64),
    ]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    samples, peak = [], 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        samples.append(resident(process.pid))
        peak = max(peak, highest(process.pid))
        time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        message = process.stderr.read().decode() if process.stderr else ""
        raise RuntimeError(f"the ingest ended with code {process.returncode}: {message}")
    early, late = _quarters(samples)
    return Ingested(
        frames=manifest.load(out).split("train").frames,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak=peak,
        early=early,
        late=late,
    )


@dataclasses.dataclass(frozen=True)
class Use:
    """Seconds until the stream stood, and memory of the process in bytes."""

    seconds: float
    peak: int
    gained: int  # between before and after the stream was made
    early: int
    late: int


def loader_memory(config: DataConfig, batches: int) -> Use:
    """Takes batches as a training loop does, holding the last one."""
    before, began = resident(), time.monotonic()
    stream = TrainStream(config)
    seconds = time.monotonic() - began
    samples = []
    held = None
    for _ in range(batches):
        held = next(stream)
        samples.append(resident())
    del held
    stream.close()
    early, late = _quarters(samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Use(seconds, peak, max(samples) - before, early, late)


def start(config: DataConfig) -> Use:
    """Makes a stream and lets it stand."""
    before, began = resident(), time.monotonic()
    stream = TrainStream(config)
    seconds, after = time.monotonic() - began, resident()
    stream.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Use(seconds, peak, after - before, after, after)


def simulate(directory: Path, records: int) -> None:
    """A dataset of which only manifest and opening of each index are written; the rest is holes.

    Every shard has `SHARD_RECORDS` records with a frame table each, as an ingest leaves them.
    """
    directory.mkdir()
    entries = np.zeros(SHARD_RECORDS, ENTRY)
    entries["offset"] = np.arange(SHARD_RECORDS, dtype=np.uint64) * (RECORD_BYTES + OVERHEAD)
    entries["length"], entries["frames"] = RECORD_BYTES, RECORD_FRAMES
    size = SHARD_RECORDS * (RECORD_BYTES + OVERHEAD)
    model, blocks = directory / "model", [bytes(BLOCK_BYTES)] * SHARD_RECORDS
    crc = write_index(model, entries, size, blocks=blocks, binding=(0, 0))
    index = Path(f"{model}{INDEX_SUFFIX}")
    whole = index.read_bytes()
    index.unlink()
    opening = whole[: -SHARD_RECORDS * BLOCK_BYTES]
    shards = []
    for number in range(-(-records // SHARD_RECORDS)):
        name = f"simulated-train-{number:05d}.tfrecord"
        for path, start, length in (
            (directory / name, b"", size),
            (directory / f"{name}{INDEX_SUFFIX}", opening, len(whole)),
        ):
            path.write_bytes(start)
            os.truncate(path, length)
        shards.append(manifest.ShardInfo(name, SHARD_RECORDS, size, f"{number:064x}", crc))
    total = SHARD_RECORDS * len(shards)
    split = manifest.SplitInfo(tuple(shards), total, total * RECORD_FRAMES, ())
    found = manifest.Manifest(str(directory), "simulated", 1, (), False, {}, {"train": split})
    manifest.save(found)
