"""Numerics without parameters, against slower or independent formulations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.ops import resize
from internvideo_jax.ops.attention import attend
from internvideo_jax.ops.losses import smooth_labels, soft_cross_entropy
from internvideo_jax.ops.mixup import cutmix_box, mix_batch
from internvideo_jax.ops.pixels import normalize, patchify, to_unit, token_grid, unpatchify
from internvideo_jax.ops.reconstruction import hidden_weight, normalized_target, restore_pixels
from internvideo_jax.ops.tokens import scatter, take

KEY = jax.random.key(0)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 9), (16, 5)])
def test_attention_and_its_gradient_equal_jax_nn(queries, keys):
    q = jax.random.normal(KEY, (2, queries, 3, 8))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, keys, 3, 8))

    def value_and_gradients(attention):
        def loss(q, k, v):
            value = attention(q, k, v)
            return (value**2).sum(), value

        gradients, value = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return value, gradients

    value, gradients = value_and_gradients(attend)
    expected, wanted = value_and_gradients(jax.nn.dot_product_attention)
    np.testing.assert_allclose(value, expected, atol=2e-6)
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_survives_huge_logits():
    q = 1e4 * jnp.ones((1, 2, 1, 4))
    out = attend(q, q, jnp.ones((1, 2, 1, 4)))
    np.testing.assert_allclose(out, 1.0)


def test_attention_keeps_bfloat16_and_sums_in_float32():
    q, k, v = jax.random.normal(KEY, (3, 1, 512, 2, 16))
    low = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), attend(q, k, v), atol=0.02)


def test_patchify_orders_tokens_and_values():
    t, h, w = 2, 3, 2
    video = jnp.arange(4 * 6 * 4 * 3).reshape(1, 4, 6, 4, 3)
    tokens = patchify(video, 2, 2)
    assert tokens.shape == (1, t * h * w, 2 * 2 * 2 * 3)
    token = tokens[0, (1 * h + 2) * w + 1]  # second frame pair, third row, second column
    np.testing.assert_array_equal(token, video[0, 2:4, 4:6, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(tokens, (t, h, w), 2, 2), video)


@pytest.mark.parametrize(
    ("frames", "size", "message"),
    [(7, 48, "7 frames cannot be cut into tubelets of 2"), (8, 50, "48 and 56")],
)
def test_clips_that_cannot_be_cut(frames, size, message):
    with pytest.raises(ValueError, match=message):
        token_grid(frames, size, 2, 8)


def test_normalize_works_on_pixels_and_on_tokens():
    video = jax.random.randint(KEY, (1, 2, 4, 4, 3), 0, 256).astype(jnp.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (video / 255.0 - jnp.array(mean)) / jnp.array(std)
    np.testing.assert_allclose(normalize(video, mean, std), expected, atol=1e-6)
    np.testing.assert_allclose(
        normalize(patchify(video, 2, 2), mean, std), patchify(expected, 2, 2), atol=1e-6
    )


def test_normalized_target_has_unit_variance_and_can_be_undone():
    tokens = jax.random.uniform(KEY, (2, 5, 2 * 4 * 4 * 3))
    target = normalized_target(tokens).reshape(2, 5, 32, 3)
    np.testing.assert_allclose(target.mean(axis=2), 0.0, atol=1e-5)
    np.testing.assert_allclose(target.var(axis=2, ddof=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(restore_pixels(normalized_target(tokens), tokens), tokens, atol=1e-6)


def test_a_flat_tubelet_has_a_finite_target():
    assert jnp.isfinite(normalized_target(jnp.full((1, 1, 96), 0.3))).all()


def test_take_and_scatter_are_inverse():
    tokens = jax.random.normal(KEY, (2, 6, 3))
    index = jnp.array([[0, 5], [2, 3]])
    np.testing.assert_array_equal(scatter(tokens, index, take(tokens, index)), tokens)
    cleared = scatter(tokens, index, jnp.zeros((2, 2, 3)))
    assert (take(cleared, index) == 0).all() and (cleared[0, 1] == tokens[0, 1]).all()


def test_hidden_weight_is_membership():
    rng = np.random.default_rng(0)
    visible = np.stack([np.sort(rng.choice(40, 11, replace=False)) for _ in range(6)])
    decoded = np.stack([np.sort(rng.choice(40, 17, replace=False)) for _ in range(6)])
    expected = [[float(d not in v) for d in ds] for v, ds in zip(visible, decoded, strict=True)]
    np.testing.assert_array_equal(hidden_weight(jnp.array(visible), jnp.array(decoded)), expected)


def test_resize_keeps_constants_and_identity():
    table = np.random.default_rng(0).normal(size=(2 * 4 * 4, 5))
    assert resize.resize_table(table, (2, 4, 4), (2, 4, 4)) is not None
    np.testing.assert_array_equal(resize.resize_table(table, (2, 4, 4), (2, 4, 4)), table)
    constant = np.ones((2 * 4 * 4, 5))
    np.testing.assert_allclose(resize.resize_table(constant, (2, 4, 4), (3, 7, 2)), 1.0)
    with pytest.raises(ValueError, match="32 rows"):
        resize.resize_table(table, (2, 4, 5), (2, 4, 4))


def test_soft_cross_entropy_of_smoothed_labels():
    logits = jax.random.normal(KEY, (4, 7))
    label = jnp.array([0, 3, 6, 2])
    log_p = jax.nn.log_softmax(logits)
    expected = -0.9 * log_p[jnp.arange(4), label] - 0.1 * log_p.mean(axis=1)
    np.testing.assert_allclose(
        soft_cross_entropy(logits, smooth_labels(label, 7, 0.1)), expected, rtol=1e-5
    )


mix_both = jax.jit(lambda key, video: mix_batch(key, video, mixup=0.8, cutmix=1.0))


def test_mixing_keeps_pairs_and_weights():
    video = jax.random.uniform(KEY, (4, 2, 8, 8, 3))
    for seed in range(8):
        mixed, lam = mix_both(jax.random.key(seed), video)
        inside = jnp.isclose(mixed, video).mean(axis=(1, 2, 3, 4))
        assert 0.0 <= float(lam) <= 1.0
        if (inside > 0).any():  # CutMix: the untouched share of the image is the weight
            np.testing.assert_allclose(inside, lam, atol=1e-5)
        else:
            np.testing.assert_allclose(mixed, lam * video + (1 - lam) * video[::-1], atol=1e-6)


def test_both_kinds_of_mixing_occur():
    video = jax.random.uniform(KEY, (2, 1, 8, 8, 3))
    kinds = set()
    for seed in range(12):
        mixed, _ = mix_both(jax.random.key(seed), video)
        kinds.add(bool(jnp.isclose(mixed, video).any()))
    assert kinds == {True, False}


def test_mixing_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="must be even, found 3"):
        mix_batch(KEY, jnp.zeros((3, 1, 4, 4, 3)), mixup=0.8, cutmix=0.0)


def test_cutmix_box_at_the_border_is_clipped():
    box, lam = cutmix_box(10, 10, jnp.float32(0.64), jnp.int32(0), jnp.int32(9))
    assert box.tolist() == [0, 3, 6, 10]
    np.testing.assert_allclose(lam, 1 - 3 * 4 / 100)


def test_to_unit_leaves_floats_alone():
    np.testing.assert_array_equal(to_unit(jnp.array([0.25])), [0.25])
    np.testing.assert_allclose(to_unit(jnp.array([255], jnp.uint8)), [1.0])
