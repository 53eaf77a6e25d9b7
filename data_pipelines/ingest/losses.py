"""Clips at which a worker was killed, remembered from run to run.

A video that exhausts the memory takes its worker down without a trace, and would do so again in
every run. A clip that was being decoded when its worker was killed is tried once more by the next
run and left out after that.
"""

import dataclasses
import json

from data_pipelines.ingest.rows import Row
from data_pipelines.ingest.work import ShardTask
from data_pipelines.records import storage

FILE_NAME = "killed.json"

_LIMIT = 2


def load(out: str) -> dict[str, int]:
    """Clip -> number of workers killed at it; ValueError if the file is unreadable."""
    path = storage.join(out, FILE_NAME)
    try:
        found = json.loads(storage.read_text(path))
        return {str(key): int(count) for key, count in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: is not readable ({error}); delete it and run again") from error


def add(out: str, row: Row) -> None:
    """Count one more worker killed at a clip."""
    losses = load(out)
    losses[_key(row)] = losses.get(_key(row), 0) + 1
    text = json.dumps(losses, indent=1, sort_keys=True) + "\n"
    storage.write_atomic(storage.join(out, FILE_NAME), text.encode())


def exclude(task: ShardTask, losses: dict[str, int]) -> ShardTask:
    """The task without the clips that killed too many workers; they will be rejected."""
    crashed = {
        position: f"{losses[_key(row)]} workers were killed while decoding it"
        for position, row in enumerate(task.rows)
        if losses.get(_key(row), 0) >= _LIMIT
    }
    return dataclasses.replace(task, crashed=crashed) if crashed else task


def _key(row: Row) -> str:
    return f"{row.split}/{row.id}"
