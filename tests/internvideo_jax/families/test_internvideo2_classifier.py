"""InternVideo2's classifier: heads of probes, their start, batch statistics, training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from internvideo_jax.families.internvideo2.classifier import ExtraMLP, InternVideo2ClassifierConfig
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.tower import SMALLEST
from internvideo_jax.types import flatten_paths, unflatten_paths
from tests.internvideo_jax import small
from tests.internvideo_jax.checkpoint.test_classes import random_params

CONFIG = InternVideo2ClassifierConfig(
    encoder=SMALLEST,
    embedding=16,
    pool_heads=2,
    classes=5,
    **small.clip(frames=2),
)
# Tokens after the last block: class token, then two frames of four patches.
TOKENS = np.random.default_rng(3).normal(size=(3, 9, 32)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(1), 3)


def made(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    return config, config.model(), random_params(config)


def classify(model, flat, keys=None):
    return model.apply(unflatten_paths(flat), TOKENS, keys, method="classify")


def test_the_extra_mlp_starts_as_nothing():
    mlp = ExtraMLP(16, init=Init("normal"), rngs=nnx.Rngs(params=0))
    x = jnp.asarray(TOKENS[:, 0, :16])
    np.testing.assert_array_equal(mlp(x), x)
    mlp.fc2.kernel[...] += 1.0
    assert np.abs(mlp(x) - x).max() > 1e-3


@pytest.mark.parametrize(
    ("merge", "width"),
    [("proj", 16), ("cls_avg1", 64), ("cls_avgN", 48), ("cls_avgN_proj", 64)],
)
def test_the_head_reads_what_the_method_says(merge, width):
    config, model, flat = made(merge=merge)
    assert config.head_width == width == flat["head/kernel"].shape[0]
    assert ("down/kernel" in flat) == ("avgN" in merge)
    # Values of the head that the pooled vector feeds are the last ones.
    weights = np.zeros((width, 5), np.float32)
    weights[-16:] = 1.0
    flat |= {"head/kernel": weights, "head/bias": np.zeros(5, np.float32)}
    flat |= {"fc_norm/bias": np.full(16, 2.0), "fc_norm/scale": np.zeros(16)}
    logits, _ = classify(model, flat)
    if merge.endswith("proj"):
        np.testing.assert_allclose(logits, 32.0, rtol=1e-6)
    else:
        assert np.abs(logits - 32.0).min() > 1e-3


def test_batch_statistics_move_in_training_only():
    config, model, flat = made(merge="cls_avg1", merge_norm="BN")
    assert config.running_statistics and not CONFIG.running_statistics
    flat |= {"down_norm/mean": np.ones(32), "down_norm/var": np.full(32, 2.0)}
    logits, statistics = classify(model, flat)
    assert not statistics
    trained, statistics = classify(model, flat, KEYS)
    assert set(statistics) == {"down_norm/mean", "down_norm/var"}
    assert np.abs(trained - logits).max() > 1e-3
    z = np.stack([TOKENS[:, 0], TOKENS[:, 1:].mean(axis=1)], axis=1)
    mean, variance = 0.9 + 0.1 * z.mean(axis=(0, 1)), 1.8 + 0.1 * z.var(axis=(0, 1)) * 6 / 5
    np.testing.assert_allclose(statistics["down_norm/mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(statistics["down_norm/var"], variance, rtol=1e-4)


def test_dropout_needs_keys():
    _, model, flat = made(head_dropout=0.5)
    still, plain = classify(model, flat)[0], classify(CONFIG.model(), flat, KEYS)[0]
    np.testing.assert_array_equal(still, plain)
    assert np.abs(classify(model, flat, KEYS)[0] - still).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge": "cls_avg"}, "config.model.merge: unknown 'cls_avg'"),
        ({"merge_norm": "GN"}, "config.model.merge_norm: unknown 'GN'"),
        ({"extra_mlp": True, "merge": "cls_avg1_proj"}, "extra_mlp stands between"),
    ],
)
def test_heads_that_do_not_exist(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_published_number_of_parameters():
    for size, count in {"small": 23_591_366, "1b": 1_021_256_134, "6b": 5_942_282_694}.items():
        shapes = flatten_paths(
            InternVideo2ClassifierConfig.of_size(size, classes=710).model().shapes()
        )
        assert sum(leaf.size for leaf in shapes.values()) == count
