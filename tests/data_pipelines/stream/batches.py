"""The first batches of a stream."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from data_pipelines.config import DataConfig
from data_pipelines.stream.pipeline import TrainStream


def take(stream: Any, steps: int) -> list[dict[str, np.ndarray]]:
    """`steps` batches, or as many as there are; then the stream is closed."""
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def first_batches(settings: DataConfig, steps: int, **where: Any) -> list[dict[str, np.ndarray]]:
    """The first batches of a training stream, which must have as many."""
    stream = TrainStream(settings, **where)
    try:
        return [next(stream) for _ in range(steps)]
    finally:
        stream.close()
