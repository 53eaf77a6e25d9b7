"""Opens a split in a process of its own, so that the peak of its memory is that of opening."""

from __future__ import annotations

import json
import resource
import sys
import time

began = time.perf_counter()
from data_pipelines.records.dataset import open_dataset  # noqa: E402  (its time is measured)

imported = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = open_dataset(sys.argv[1], "train")
seconds = time.perf_counter() - imported
usage = resource.getrusage(resource.RUSAGE_SELF)
print(
    json.dumps(
        {
            "records": len(dataset),
            "seconds": seconds,
            "import_seconds": imported - began,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_mb": usage.ru_maxrss / 1024,
            "grown_mb": (usage.ru_maxrss - before) / 1024,
            "frames_of_last": dataset.source.num_frames(len(dataset) - 1),
        }
    )
)
