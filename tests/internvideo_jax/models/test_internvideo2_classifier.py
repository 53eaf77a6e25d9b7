"""InternVideo2's classifier: heads of probes, their start, batch statistics, training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.models.internvideo2_classifier import ClassifierConfig
from internvideo_jax.models.videomae import SMALLEST
from internvideo_jax.types import flatten_paths, unflatten_paths

CONFIG = ClassifierConfig(
    encoder=SMALLEST,
    embedding=16,
    pool_heads=2,
    patch=8,
    size=16,
    frames=2,
    classes=5,
    dtype="float32",
    head_scale=1.0,
)
VIDEO = jax.random.uniform(jax.random.key(3), (3, 2, 16, 16, 3))
KEYS = jax.random.split(jax.random.key(1), 3)
KEY = jax.random.key(0)


def made(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    model = config.model()
    return config, model, model.init(KEY)


def test_the_extra_mlp_starts_as_nothing():
    _, plain, params = made()
    _, probe, with_mlp = made(extra_mlp=True)
    flat = {**flatten_paths(with_mlp), **flatten_paths(params)}
    np.testing.assert_array_equal(
        probe.apply(unflatten_paths(flat), VIDEO), plain.apply(params, VIDEO)
    )
    flat["extra_mlp/fc2/bias"] = jnp.arange(16.0)
    changed = probe.apply(unflatten_paths(flat), VIDEO)
    assert np.abs(changed - plain.apply(params, VIDEO)).max() > 1e-3


@pytest.mark.parametrize(
    ("merge", "width"),
    [("proj", 16), ("cls_avg1", 64), ("cls_avgN", 48), ("cls_avgN_proj", 64)],
)
def test_the_head_reads_what_the_method_says(merge, width):
    config, model, params = made(merge=merge)
    flat = flatten_paths(params)
    assert config.head_width == width == flat["head/kernel"].shape[0]
    assert ("down/kernel" in flat) == ("avgN" in merge)
    # Values of the head that the pooled vector feeds are the last ones.
    weights = np.zeros((width, 5), np.float32)
    weights[-16:] = 1.0
    flat["head/kernel"], flat["fc_norm/bias"] = jnp.asarray(weights), jnp.full(16, 2.0)
    flat["fc_norm/scale"] = jnp.zeros(16)
    logits = model.apply(unflatten_paths(flat), VIDEO)
    if merge.endswith("proj"):
        np.testing.assert_allclose(logits, 32.0, rtol=1e-6)
    else:
        assert np.abs(logits - 32.0).min() > 1e-3


def test_batch_statistics_move_in_training_only():
    config, model, params = made(merge="cls_avg1", merge_norm="BN")
    assert config.running_statistics and not made()[0].running_statistics
    logits, statistics = model.apply(params, VIDEO, None, method="train")
    assert not statistics
    trained, statistics = model.apply(params, VIDEO, KEYS, method="train")
    assert set(statistics) == {"down_norm/mean", "down_norm/var"}
    assert np.abs(trained - logits).max() > 1e-3
    features = model.apply(params, VIDEO, method="features")
    z = np.stack([features[:, 0], features[:, 1:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(
        statistics["down_norm/mean"], 0.1 * z.mean(axis=(0, 1)), rtol=1e-4, atol=1e-6
    )
    variance = 0.9 + 0.1 * z.var(axis=(0, 1), ddof=1)
    np.testing.assert_allclose(statistics["down_norm/var"], variance, rtol=1e-4)


def test_dropout_and_drop_path_need_keys():
    _, model, params = made(head_dropout=0.5)
    still = model.apply(params, VIDEO)
    np.testing.assert_array_equal(still, model.apply(params, VIDEO))
    assert np.abs(model.apply(params, VIDEO, KEYS) - still).max() > 1e-4


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
        shapes = flatten_paths(ClassifierConfig.of_size(size, classes=710).model().shapes())
        assert sum(leaf.size for leaf in shapes.values()) == count
