"""Reading ahead in threads and worker processes, without a say in what is read."""

from __future__ import annotations

import functools
import os
import threading
import time
from typing import Any

import grain
from absl import flags

from data_pipelines.config import ReaderConfig

CORRUPT_POLICIES = ("raise", "substitute")


def check_reader(reader: ReaderConfig) -> None:
    """ValueError for settings that cannot work."""
    if reader.on_corrupt not in CORRUPT_POLICIES:
        raise ValueError(
            f"unknown reader.on_corrupt {reader.on_corrupt!r}; known: {', '.join(CORRUPT_POLICIES)}"
        )
    if reader.threads < 1 or reader.buffer < 1 or reader.workers < 0:
        raise ValueError(f"reader needs threads >= 1, buffer >= 1, workers >= 0; found {reader}")


def iterate(examples: Any, batch: int, reader: ReaderConfig) -> Any:
    """A parallel iterator over full batches of a MapDataset."""
    batches = examples.batch(batch, drop_remainder=True)
    # The default buffer of 500 elements would be 500 batches.
    options = grain.ReadOptions(
        num_threads=reader.threads, prefetch_buffer_size=max(reader.threads, reader.buffer)
    )
    stream = batches.to_iter_dataset(options)
    if reader.workers > 0:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=reader.workers),
            worker_init_fn=functools.partial(_end_with_parent, os.getpid()),
        )
    return iter(stream)


def _end_with_parent(parent: int, worker: int, workers: int) -> None:
    """In a worker process: exit when the parent is gone, however it died.

    The parent's number comes from the parent: a worker that asked for it here would never end if
    the parent died while the worker was still starting.
    """
    del worker, workers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
