"""How different vectors are: effective rank, spread, cosines, nearest neighbours. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from internvideo_jax.inference.vectors import Rows

STILL = 0.01  # a dimension whose deviation is below this share of the vectors' size says nothing


def effective_rank(values: np.ndarray) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the singular values' shares.

    Not centred, so that vectors which are all the same have rank 1; at most min(N, D).

    Args:
      values: (N, D).
    """
    singular = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def spread(values: np.ndarray) -> dict[str, float]:
    """Numbers of (N, D) vectors, N > 1.

    Returns:
      effective_rank: of the matrix.
      std: mean over dimensions of the standard deviation over vectors.
      relative_std: root of the mean variance over the root of the mean square: 0 where all vectors
        are the same, 1 where they have no part in common.
      still: share of dimensions that hardly vary (STILL).
      cosine: mean over pairs of different vectors; a vector of zeros has cosine 0 with all.
    """
    rows = values.astype(np.float64)
    size = np.sqrt((rows**2).mean())
    deviation = rows.std(axis=0)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    count = len(rows)
    pairs = (np.square(unit.sum(axis=0)).sum() - np.square(unit).sum()) / (count * (count - 1))
    return {
        "effective_rank": effective_rank(rows),
        "std": float(deviation.mean()),
        "relative_std": float(np.sqrt((deviation**2).mean()) / size) if size else 0.0,
        "still": float((deviation <= STILL * size).mean()),
        "cosine": float(pairs),
    }


def _cosines(values: np.ndarray) -> np.ndarray:
    """(R, R) of vectors about their mean; what all have in common would drown the differences."""
    rows = values.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return rows @ rows.T


def neighbours(rows: Rows) -> dict[str, float]:
    """Whose nearest neighbours the views of some videos are.

    Returns:
      own_video: share of views whose nearest other view is of their own video. Videos whose first
        two views are the same vector (shorter than a clip) are left out; absent without others.
      same_label: share of labelled videos whose nearest other video has their label; absent
        without two of them.
    """
    found = {}
    similar = _cosines(rows.values)
    np.fill_diagonal(similar, -np.inf)
    nearest = similar.argmax(axis=1)
    counted = np.isin(rows.record, _with_two_views(rows))
    if counted.any():
        own = rows.record[nearest] == rows.record
        found["own_video"] = float(own[counted].mean())
    first = rows.where((rows.view == 0) & (rows.label >= 0))
    if len(first) > 1:
        similar = _cosines(first.values)
        np.fill_diagonal(similar, -np.inf)
        found["same_label"] = float((first.label[similar.argmax(axis=1)] == first.label).mean())
    return found


def _with_two_views(rows: Rows) -> list[int]:
    """Records with views that differ."""
    found = []
    for record in np.unique(rows.record):
        values = rows.values[rows.record == record]
        if len(values) > 1 and (values[0] != values[1]).any():
            found.append(int(record))
    return found


def own_caption(videos: np.ndarray, texts: np.ndarray, own: Sequence[int]) -> float:
    """Share of videos (V, E) whose nearest of the texts (M, E) is number `own` of them."""
    tiny = np.finfo(np.float64).tiny
    sides = [side.astype(np.float64) for side in (videos, texts)]
    sides = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), tiny) for side in sides]
    return float(((sides[0] @ sides[1].T).argmax(axis=1) == np.asarray(own)).mean())
