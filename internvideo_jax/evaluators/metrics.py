"""Classification metrics over merged views, in numpy on the host."""

from __future__ import annotations

import numpy as np

MERGES = ("probability", "logit", "probability_sum")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def merge_views(
    record: np.ndarray, view: np.ndarray, logits: np.ndarray, how: str = "probability"
) -> tuple[np.ndarray, np.ndarray]:
    """Scores per video from the logits of its views.

    Args:
      record: (R,) which video a row belongs to.
      view: (R,) which view of it; a (record, view) pair that comes twice counts once.
      logits: (R, K).
      how: `probability` averages the softmax of the views (the published protocol), `logit`
        averages logits, `probability_sum` adds the softmax (UniFormerV2; same ranking).

    Returns:
      (V,) sorted video numbers, (V, K) scores.
    """
    if how not in MERGES:
        raise ValueError(f"unknown merge rule {how!r}; known: {', '.join(MERGES)}")
    _, first = np.unique(np.stack([record, view], axis=1), axis=0, return_index=True)
    record, logits = record[first], logits[first]
    scores = logits.astype(np.float64) if how == "logit" else softmax(logits)
    videos, place, counts = np.unique(record, return_inverse=True, return_counts=True)
    merged = np.zeros((len(videos), logits.shape[1]))
    np.add.at(merged, place, scores)
    return videos, merged if how == "probability_sum" else merged / counts[:, None]


def top_k(scores: np.ndarray, label: np.ndarray, k: int) -> float:
    """Share of rows whose label is among the k highest scores."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == label[:, None]).any(axis=1).mean())


def mean_class_accuracy(scores: np.ndarray, label: np.ndarray) -> float:
    """Mean over the classes that occur of their top-1 accuracy."""
    hit = scores.argmax(axis=1) == label
    return float(np.mean([hit[label == each].mean() for each in np.unique(label)]))


def confusion(scores: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts, true class by row, predicted class by column."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (label, scores.argmax(axis=1)), 1)
    return table
