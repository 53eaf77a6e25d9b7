"""Batches of one shape through one compiled function; a batch computes while another is fetched."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.stream.parts.features import PREFIX
from internvideo_jax.parallel.mesh import batch_sharding
from internvideo_jax.parallel.multihost import to_global, to_host
from internvideo_jax.types import Params

# Clips of a device's share of a step, at most: matmuls of ten thousand rows for usual clips,
# and little padding where a split is nearly empty.
TILE = 8
LARGE = ("video", "audio")  # these, and cached features, do not come back to the host

Key = TypeVar("Key")
Batch = dict[str, np.ndarray]
Forward = Callable[[Any, Mapping[str, jax.Array]], Any]  # (parameters, batch) -> arrays


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function of (parameters, batch) on a mesh."""

    function: Forward
    mesh: Mesh

    def __call__(
        self, params: Params | None, batch: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, jax.Array], Any]:
        """The batch without its large arrays, and what is made of it; waits for neither.

        Args:
          batch: the rows of this process.
        """
        placed = to_global(batch, batch_sharding(self.mesh))
        with jax.set_mesh(self.mesh):
            made = self.function(params, placed)
        return {name: rows for name, rows in placed.items() if not _is_large(name)}, made


def _is_large(name: str) -> bool:
    """Whether an array of a batch does not come back to the host."""
    return name in LARGE or name.startswith(PREFIX)


def fetched(steps: Iterable[tuple[Key, Any]]) -> Iterator[tuple[Key, Any]]:
    """Host copies of what the devices compute, in order; whole on every process.

    Args:
      steps: anything, and arrays on the devices. Taking the next one starts its computation.
    """
    running: collections.deque[tuple[Key, Any]] = collections.deque()
    for step in steps:
        running.append(step)
        if len(running) > 1:  # one step computes while the one before is fetched
            key, made = running.popleft()
            yield key, to_host(made)
    for key, made in running:
        yield key, to_host(made)


def tile_rows(views: int) -> int:
    """Clips that a device computes at a time: whole videos, or an even share of one's views.

    It depends on the number of views per video only, never on devices or processes.
    """
    if views < TILE:
        return TILE // views * views
    return max(rows for rows in range(1, TILE + 1) if views % rows == 0)


def deal(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """The same rows in batches of exactly `rows`; the last is padded with `valid` = False."""
    parts: list[Batch] = []
    held = 0
    for batch in batches:
        parts.append(batch)
        held += len(batch["valid"])
        while held >= rows:
            whole = _joined(parts)
            yield {name: value[:rows] for name, value in whole.items()}
            parts, held = [{name: value[rows:] for name, value in whole.items()}], held - rows
    if held:
        last = _joined(parts)
        padded = {
            name: np.concatenate([value, np.repeat(value[-1:], rows - held, axis=0)])
            for name, value in last.items()
        }
        padded["valid"][held:] = False
        yield padded


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
