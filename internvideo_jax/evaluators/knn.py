"""Nearest neighbours on frozen features: a monitor that trains nothing."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.limits import limited
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.features import MEAN, FeatureTask, extract
from internvideo_jax.tasks import Result


@dataclasses.dataclass(frozen=True)
class NearestNeighbours(FeatureTask):
    """Cosine-weighted vote of the k nearest training clips (as in DINO, Caron et al. 2021)."""

    name: str = "knn"
    neighbours: int = limited(20, least=1)
    temperature: float = limited(0.07, above=0)
    max_clips: int = limited(5000, least=1)  # training clips used

    def run(self, context: EvalContext) -> Result:
        """Every test clip takes the weighted vote of the training clips nearest to it."""
        train, test = self.inputs()
        bank = extract(context, train, MEAN, limit=self.max_clips)
        query = extract(context, test, MEAN)
        # Without centring the part that all clips share would drown the differences.
        centre = bank.values.mean(axis=0)
        top1 = vote(
            _unit(bank.values - centre),
            bank.label,
            _unit(query.values - centre),
            len(bank.classes),
            self.neighbours,
            self.temperature,
        )
        return Result(
            metrics={"top1": float((top1 == query.label).mean())},
            protocol={
                **query.protocol,
                "train_split": self.train_split,
                "train_clips": len(bank.label),
                "neighbours": self.neighbours,
                "temperature": self.temperature,
            },
        )


def _unit(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():  # finite values may have squares that are not
        raise ValueError(f"features up to {np.abs(x).max():.3g} have no finite length")
    return x / np.maximum(lengths, 1e-12)


def vote(
    bank: np.ndarray,
    label: np.ndarray,
    query: np.ndarray,
    classes: int,
    neighbours: int,
    temperature: float,
) -> np.ndarray:
    """Predicted class per query row; bank (R, D) and query (Q, D) have unit rows."""
    neighbours = min(neighbours, len(bank))
    predicted = np.empty(len(query), np.int64)
    for start in range(0, len(query), 1024):  # bounds the similarity matrix
        similarity = query[start : start + 1024] @ bank.T
        nearest = np.argpartition(-similarity, neighbours - 1, axis=1)[:, :neighbours]
        weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
        votes = np.zeros((len(similarity), classes))
        rows = np.arange(len(similarity))[:, None]
        np.add.at(votes, (rows, label[nearest]), weight)
        predicted[start : start + 1024] = votes.argmax(axis=1)
    return predicted
