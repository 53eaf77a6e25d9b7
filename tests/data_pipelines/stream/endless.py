"""Reads a step in two workers and waits; argument: the set."""

from __future__ import annotations

import sys
import time

from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig
from data_pipelines.stream.pipeline import TrainStream

if __name__ == "__main__":
    stream = TrainStream(
        DataConfig(
            train=sys.argv[1],
            global_batch=8,
            clip=ClipConfig(frames=2, stride=2, resolution=24),
            reader=ReaderConfig(workers=2),
        )
    )
    next(stream)
    print("ready", flush=True)
    time.sleep(60)
