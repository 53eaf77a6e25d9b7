"""Opening large splits: simulated index files beside shards that take no disk space."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.manifest import Manifest, ShardInfo, SplitInfo, save
from data_pipelines.record_index import ENTRY, OVERHEAD, write_index

RECORD_BYTES, FRAMES = 6_400_000, 300
BLOCK_BYTES = 24 + 16 * (FRAMES + 2) + len("image/timestamp") + 5  # as data_pipelines.frame_table

# Run in a process of its own, so that the peak of its memory is that of opening.
MEASURE = """
import json, resource, sys, time
began = time.perf_counter()
from data_pipelines.dataset import open_dataset
imported = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = open_dataset(sys.argv[1], "train")
seconds = time.perf_counter() - imported
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "records": len(dataset), "seconds": seconds, "import_seconds": imported - began,
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_mb": usage.ru_maxrss / 1024, "grown_mb": (usage.ru_maxrss - before) / 1024,
    "frames_of_last": dataset.source.num_frames(len(dataset) - 1),
}))
"""


def simulate(directory: Path, shards: int, records: int) -> None:
    """A split of that size as an ingest would leave it, without the records themselves."""
    entries = np.zeros(records, ENTRY)
    entries["length"], entries["frames"] = RECORD_BYTES, FRAMES
    entries["offset"] = np.arange(records, dtype=np.uint64) * np.uint64(RECORD_BYTES + OVERHEAD)
    size = records * (RECORD_BYTES + OVERHEAD)
    model = directory / "model"
    crc = write_index(model, entries, size, blocks=[b"\0" * BLOCK_BYTES] * records, binding=(0, 0))
    index = Path(f"{model}.idx").read_bytes()
    os.unlink(f"{model}.idx")
    opening = index[: len(index) - records * BLOCK_BYTES]
    assert struct.unpack("<I", opening[-4:])[0] == crc
    infos = []
    for number in range(shards):
        name = f"big-train-{number:05d}-of-{shards:05d}.tfrecord"
        for path, start, length in (
            (directory / name, b"", size),
            (directory / f"{name}.idx", opening, len(index)),
        ):
            with open(path, "wb") as file:
                file.write(start)
                file.truncate(length)
        infos.append(ShardInfo(name, records, size, "0" * 64, crc))
    total = shards * records
    split = SplitInfo(tuple(infos), total, total * FRAMES, ())
    save(Manifest(str(directory), "big", 1, (), False, {}, {"train": split}))


def measure(directory: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_opening_a_hundred_thousand_records(tmp_path):
    simulate(tmp_path, 100, 1000)
    found = measure(tmp_path)
    assert found["records"] == 100_000 and found["frames_of_last"] == FRAMES
    # 24 bytes a record, three times while the parts are put together.
    assert found["grown_mb"] < 3 * 24 * 100_000 / 2**20 + 30
    assert found["seconds"] < 5


@pytest.mark.slow
def test_opening_ten_million_records(tmp_path):
    simulate(tmp_path, 10_000, 1000)
    found = measure(tmp_path)
    print(found)
    assert found["records"] == 10_000_000
    assert found["seconds"] < 20 and found["peak_mb"] < 2048
    shutil.rmtree(tmp_path)  # pytest would keep 240 MB of it
