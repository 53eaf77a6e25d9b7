"""Classification metrics over merged views, in numpy on the host."""

from __future__ import annotations

import numpy as np

MERGES = ("probability", "logit", "probability_sum")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64; ValueError where it is not defined."""
    logits = logits.astype(np.float64)
    highest = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(highest).all():
        bad = int((~np.isfinite(highest)).sum())
        raise ValueError(f"{bad} of {highest.size} rows of scores are not finite")
    weights = np.exp(logits - highest)
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


def check_ranked(scores: np.ndarray) -> None:
    """ValueError for scores that are NaN, which have no order."""
    bad = np.asarray(np.isnan(scores.reshape(len(scores), -1)).any(axis=1))
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(scores)} rows of scores are NaN, first row "
            f"{int(np.argmax(bad))}; they cannot be ranked"
        )


TIES = ("first", "last")


def top_k(scores: np.ndarray, label: np.ndarray, k: int, ties: str = "first") -> float:
    """Share of rows whose label is among the k highest scores.

    Args:
      scores: (R, K).
      label: (R,).
      ties: which of equal scores ranks higher: the class that comes `first` (VideoMAE's merging of
        views) or `last` (mmaction). With fewer than k classes every row hits.
    """
    if ties not in TIES:
        raise ValueError(f"unknown tie rule {ties!r}; known: {', '.join(TIES)}")
    check_ranked(scores)
    if ties == "first":
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    else:
        best = np.argsort(scores, axis=1, kind="stable")[:, -k:]
    return float((best == label[:, None]).any(axis=1).mean())


def mean_class_accuracy(scores: np.ndarray, label: np.ndarray, over: str = "union") -> float:
    """Mean of the classes' top-1 accuracy.

    Args:
      over: `union`, of the classes that occur in labels or predictions, 0 for one that is only
        predicted (mmaction, the reference); `labels`, of those with videos (scikit-learn's
        balanced accuracy). Equal where every class has a video.
    """
    if over not in ("union", "labels"):
        raise ValueError(f"unknown set of classes {over!r}; known: union, labels")
    check_ranked(scores)
    predicted = scores.argmax(axis=1)
    hit = predicted == label
    total = sum(float(hit[label == each].mean()) for each in np.unique(label))
    count = np.unique(np.concatenate([label, predicted]) if over == "union" else label).size
    return total / count


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over the relevant items of the precision at their score; equal scores rank as one.

    Args:
      scores, relevant: (R,), the latter of truth values.

    Returns:
      The area under the stepped curve of precision over recall (no interpolation); NaN without
      relevant items.
    """
    relevant = np.asarray(relevant, bool)
    check_ranked(scores)
    if not relevant.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(relevant[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of every run of equals
    precision = hits[last] / (last + 1)
    return float((precision * np.diff(hits[last], prepend=0)).sum() / hits[-1])


def mean_average_precision(scores: np.ndarray, relevant: np.ndarray, by: str = "class") -> float:
    """Mean average precision of (R, K) scores where a row may have several labels.

    Args:
      relevant: (R, K) truth values.
      by: `class` ranks the rows of every class; classes without a positive row are left out. `row`
        ranks the classes of every row (Multi-Moments in Time); a row without a label counts 1, as
        in the reference's cases.
    """
    if by not in ("class", "row"):
        raise ValueError(f"unknown mean {by!r}; known: class, row")
    pairs = (scores, relevant) if by == "row" else (scores.T, relevant.T)
    found = np.array([average_precision(*pair) for pair in zip(*pairs, strict=True)])
    if by == "row":
        return float(np.where(np.isnan(found), 1.0, found).mean())
    return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")


def confusion(scores: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts, true class by row, predicted class by column."""
    check_ranked(scores)
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (label, scores.argmax(axis=1)), 1)
    return table
