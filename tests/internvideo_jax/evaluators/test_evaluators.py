"""Metrics, votes and probes on data with known answers."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from internvideo_jax.evaluators import metrics
from internvideo_jax.evaluators.knn import vote
from internvideo_jax.evaluators.probes import AttentiveProbe, Fit, LinearProbe
from internvideo_jax.ops.probe_heads import init_head


def test_views_of_a_video_are_merged_once_each():
    record = np.array([7, 7, 3, 7, 3])
    view = np.array([0, 1, 0, 1, 1])  # (7, 1) comes twice
    logits = np.log(np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.0001, 0.9999], [0.4, 0.6]]))
    videos, scores = metrics.merge_views(record, view, logits)
    assert videos.tolist() == [3, 7]
    np.testing.assert_allclose(scores, [[0.3, 0.7], [0.7, 0.3]], atol=1e-6)
    _, summed = metrics.merge_views(record, view, logits, "probability_sum")
    np.testing.assert_allclose(summed, 2 * scores, atol=1e-6)
    _, by_logit = metrics.merge_views(record, view, logits, "logit")
    np.testing.assert_allclose(by_logit[0], logits[[2, 4]].mean(axis=0))
    with pytest.raises(ValueError, match="unknown merge rule 'max'"):
        metrics.merge_views(record, view, logits, "max")


def test_merge_rules_can_disagree():
    logits = np.array([[10.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    record, view = np.zeros(3, int), np.arange(3)
    assert metrics.merge_views(record, view, logits, "logit")[1].argmax() == 0
    assert metrics.merge_views(record, view, logits, "probability")[1].argmax() == 1


def test_accuracies():
    scores = np.array([[3.0, 2, 1], [1, 3, 2], [1, 3, 2], [3, 1, 2]])
    label = np.array([0, 1, 2, 2])
    assert metrics.top_k(scores, label, 1) == 0.5
    assert metrics.top_k(scores, label, 2) == 1.0
    assert metrics.top_k(scores, label, 5) == 1.0
    assert metrics.mean_class_accuracy(scores, label) == pytest.approx(2 / 3)
    assert metrics.confusion(scores, label, 3).tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]


def clusters(rng, count: int, classes: int = 4, width: int = 8, spread: float = 0.3):
    centres = np.eye(classes, width)
    label = rng.integers(classes, size=count)
    values = centres[label] + spread * rng.normal(size=(count, width))
    return values.astype(np.float32), label


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_neighbours_vote_for_their_cluster_and_noise_stays_at_chance():
    rng = np.random.default_rng(0)
    (bank, bank_label), (query, label) = clusters(rng, 400), clusters(rng, 2000)
    found = vote(unit(bank), bank_label, unit(query), 4, 20, 0.07)
    assert (found == label).mean() > 0.9
    shuffled = vote(unit(bank), rng.permutation(bank_label), unit(query), 4, 20, 0.07)
    assert abs((shuffled == label).mean() - 0.25) < 0.1


def test_more_neighbours_than_the_bank_has():
    bank = unit(np.eye(3, 4))
    assert vote(bank, np.array([0, 1, 2]), bank, 3, 50, 0.07).tolist() == [0, 1, 2]


def fit(probe, classes: int = 4) -> Fit:
    return Fit(probe, classes, seed=0)


def test_linear_probe_learns_clusters_and_not_shuffled_labels():
    rng = np.random.default_rng(1)
    (values, label), (test, test_label) = clusters(rng, 500), clusters(rng, 1000)
    probe = fit(LinearProbe(steps=150, batch=64))
    rates = [(1e-2, 1e-3), (3e-2, 1e-3)]
    assert probe.accuracy(probe.train(values, label, rates), test, test_label).min() > 0.9
    wrong = probe.train(values, rng.permutation(label), rates)
    assert probe.accuracy(wrong, test, test_label).max() < 0.45


def test_attentive_probe_finds_the_one_token_that_matters():
    """Averaging would drown it among 15 tokens of noise."""
    rng = np.random.default_rng(2)

    def tokens(count: int):
        values, label = clusters(rng, count, width=16, spread=0.05)
        noise = rng.normal(size=(count, 16, 16)).astype(np.float32)
        noise[..., 8:] = 0.0
        place = rng.integers(16, size=count)
        noise[np.arange(count), place] = values
        noise[np.arange(count), place, 15] = 4.0  # what tells it apart
        return noise.astype(np.float16), label

    (values, label), (test, test_label) = tokens(1000), tokens(500)
    rates = [(3e-3, 0.01)]
    attentive = fit(AttentiveProbe(steps=500, batch=64, heads=2))
    accuracy = attentive.accuracy(attentive.train(values, label, rates), test, test_label)[0]
    linear = fit(LinearProbe(steps=500, batch=64))
    pooled = [x.astype(np.float32).mean(axis=1) * 16 for x in (values, test)]
    baseline = linear.accuracy(linear.train(pooled[0], label, rates), pooled[1], test_label)[0]
    assert accuracy > 0.9 and accuracy > baseline + 0.2


def test_a_pair_trains_as_if_it_were_alone():
    values, label = clusters(np.random.default_rng(3), 200)
    probe, pairs = fit(LinearProbe(steps=30, batch=32)), [(1e-2, 0.0), (3e-2, 0.5), (1e-3, 0.1)]
    together = probe.train(values, label, pairs)["head"]["kernel"]
    alone = probe.train(values, label, pairs[1:2])["head"]["kernel"]
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-5, atol=1e-7)
    assert np.abs(together[1] - together[0]).max() > 1e-2


def test_probe_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="5 probe heads do not divide the width 16"):
        init_head(AttentiveProbe(heads=5).spec, jax.random.key(0), 16, 3)
