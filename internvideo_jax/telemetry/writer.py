"""Metric files of a run.

`metrics.jsonl` holds what the run computed and nothing that depends on the clock, so an interrupted
and an uninterrupted run write the same bytes. Timings go to `perf.jsonl`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from internvideo_jax.parallel.multihost import is_main
from internvideo_jax.telemetry.trackers.delivery import Trackers

METRICS = "metrics.jsonl"
PERF = "perf.jsonl"


class MetricWriter:
    """Appends one line per call, flushed at once; does nothing on other than the main process.

    Args:
      workdir: the run's directory.
      resume_step: rows of later steps are dropped; the resumed run writes them again.
      trackers: get every row as well.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int, trackers: Trackers | None = None):
        self._files: dict[str, Any] = {}
        self._trackers = trackers or Trackers()
        if not is_main():
            return
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, PERF):
            keep_until(folder / name, resume_step)
            self._files[name] = open(folder / name, "a", encoding="utf-8")  # noqa: SIM115

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Reproducible values."""
        self._write(METRICS, step, values)

    def perf(self, step: int, values: Mapping[str, float]) -> None:
        """Timings and memory."""
        self._write(PERF, step, values)

    def picture(self, step: int, name: str, path: Path) -> None:
        """A drawing of an evaluator, for the trackers."""
        self._trackers.picture(step, name, path)

    def _write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        if name not in self._files:
            return
        row = {"step": step, **{key: _plain(value) for key, value in sorted(values.items())}}
        self._files[name].write(json.dumps(row) + "\n")
        self._files[name].flush()
        self._trackers.log(step, values)

    def close(self) -> None:
        """Closes all files."""
        for file in self._files.values():
            file.close()


def _plain(value: SupportsFloat) -> int | float:
    # float() of a float32 is exact, so the text identifies the bits.
    return value if isinstance(value, int) else float(value)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metric file; a line that a killed process left unfinished is dropped."""
    rows = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def last_step(workdir: Path) -> int:
    """The step of the last row that a run has written; 0 where there is none."""
    rows = read_rows(workdir / METRICS)
    return rows[-1]["step"] if rows else 0


def keep_until(path: Path, step: int) -> None:
    """Drops rows after `step`, atomically."""
    if not path.exists():
        return
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(temporary, path)
