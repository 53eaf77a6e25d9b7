"""What the evaluators of a run have found so far, and whether it has to end for it.

An evaluator judges by its earlier looks. They are those of `metrics.jsonl`, of which a restart has
dropped what came after its checkpoint, so an interrupted run is judged as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from internvideo_jax.parallel import multihost
from internvideo_jax.tasks import Result

PREFIX = "eval"  # of the metrics of evaluators: eval/LABEL/NAME


def metric_rows(results: Mapping[str, Result]) -> dict[str, float]:
    """All metrics of some results under their names in `metrics.jsonl`."""
    return {
        f"{PREFIX}/{label}/{name}": value
        for label, result in results.items()
        for name, value in result.metrics.items()
    }


class Alarms:
    """Collects what evaluators find.

    Args:
      rows: of `metrics.jsonl`; empty on processes that do not write it.
      labels: of the evaluators.

    Attributes:
      earlier: label -> metrics of its looks, the first one first.
      raised: why the run ends, beginning with the label; empty while it goes on.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], labels: Collection[str]):
        self.earlier: dict[str, list[dict[str, float]]] = {label: [] for label in labels}
        self.raised = ""
        for row in rows:
            for label, looks in self.earlier.items():
                start = f"{PREFIX}/{label}/"
                if found := {
                    k.removeprefix(start): v for k, v in row.items() if k.startswith(start)
                }:
                    looks.append(found)

    def heard(self, results: Mapping[str, Result]) -> None:
        """After evaluators ran. The main process, which knows all looks, decides for all."""
        for label, result in results.items():
            self.earlier[label].append(dict(result.metrics))
        stopping = [f"{label}: {result.alarm}" for label, result in results.items() if result.stops]
        if multihost.any_process(multihost.is_main() and bool(stopping)):
            elsewhere = [f"{label}: process 0 says what it found" for label in results]
            self.raised = "; ".join(stopping or elsewhere)
