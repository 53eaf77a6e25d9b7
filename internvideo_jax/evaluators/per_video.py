"""What was found for every video: rows for JSONL and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.records.dataset import Dataset

TOP = 5  # classes of a row, unless all are asked for


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of the labelled videos of a split.

    Attributes:
      record: (V,) record numbers.
      label: (V,) classes.
      scores: (V, K), higher is more likely.
      classes: K names.
    """

    dataset: Dataset
    record: np.ndarray
    label: np.ndarray
    scores: np.ndarray
    classes: Sequence[str]

    def rows(self, *, every: bool = False) -> Iterator[dict[str, Any]]:
        """A row per video: id, label, rank of the label from 1, best classes; with `every`, scores
        of all classes in their order."""
        for number, label, scores in zip(self.record, self.label, self.scores, strict=True):
            order = np.argsort(-scores, kind="stable")
            row: dict[str, Any] = {
                "id": self.dataset.load(int(number)).media_id or f"record {number}",
                "label": self.classes[int(label)],
                "rank": int(np.flatnonzero(order == label)[0]) + 1,
                "top": best(scores, self.classes, TOP),
            }
            if every:
                row["scores"] = [float(score) for score in scores]
            yield row


def best(scores: np.ndarray, classes: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The `count` classes of the highest scores (K,); of equal ones the first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return [{"label": classes[int(k)], "score": float(scores[int(k)])} for k in order]


def jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sheet(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as CSV: `top` becomes columns label_1, score_1, ...; scores of all are left out."""
    flat = [
        {
            **{name: value for name, value in row.items() if name not in ("top", "scores")},
            **{
                f"top_{part}_{position}": each[part]
                for position, each in enumerate(row.get("top", ()), 1)
                for part in each
            },
        }
        for row in rows
    ]
    out = io.StringIO()
    names = dict.fromkeys(name for row in flat for name in row)
    writer = csv.DictWriter(out, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
