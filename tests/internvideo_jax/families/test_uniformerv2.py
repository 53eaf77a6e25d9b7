"""UniFormerV2 beyond the golden cases: sizes, layers, training against evaluation, errors."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.layers.batch_norm import BatchNorm
from internvideo_jax.layers.depthwise_conv import DepthwiseConv, grouped_convolution
from internvideo_jax.layers.tower import tower
from internvideo_jax.types import flatten_paths, unflatten_paths
from tests.internvideo_jax import small

KEY = jax.random.key(0)
SMALL = UniFormerV2Config(
    encoder=tower(24, 3, 2),
    classes=5,
    temporal_downsample=True,
    local_blocks=2,
    global_layers=(1, 2),
    mlp_dropout=0.0,
    head_dropout=0.0,
    **small.clip(),
)
VIDEO = jax.random.uniform(KEY, (3, 4, 16, 16, 3))
KEYS = jax.random.split(KEY, 3)


def awake(config: UniFormerV2Config):
    """Parameters without the zeros of a fresh model, so that every branch counts."""
    rng = np.random.default_rng(0)
    moved = {}
    for path, leaf in sorted(flatten_paths(config.model().shapes()).items()):
        positive = path.endswith(("scale", "norm/var"))
        moved[path] = (0.3 * rng.normal(size=leaf.shape) + positive).astype(np.float32)
        if positive:
            moved[path] = np.abs(moved[path])
    return unflatten_paths(moved)


@functools.cache
def compiled(config: UniFormerV2Config, method: str = "__call__"):
    return jax.jit(functools.partial(config.model().apply, method=method))


@pytest.mark.parametrize(
    ("size", "style", "classes", "expected"),
    [
        ("base", "kinetics", 400, 114_552_208),
        ("base", "something", 174, 162_992_814),
        ("large", "kinetics", 400, 354_099_600),
        ("large336", "kinetics", 400, 354_427_280),
        ("large", "something", 174, 573_949_966),
    ],
)
def test_published_parameter_counts(size, style, classes, expected):
    model = UniFormerV2Config.of_size(size, style=style, classes=classes).model()
    sizes = {p: int(np.prod(leaf.shape)) for p, leaf in flatten_paths(model.shapes()).items()}
    running = ("norm/mean", "norm/var")  # torch counts these as buffers
    assert sum(n for path, n in sizes.items() if not path.endswith(running)) == expected


def test_frozen_variant_counts_what_is_trained():
    model = UniFormerV2Config.of_size("large336", classes=400, frozen=True).model()
    sizes = {p: int(np.prod(leaf.shape)) for p, leaf in flatten_paths(model.shapes()).items()}
    assert sum(sizes.values()) == 354_426_256
    trained = sum(n for path, n in sizes.items() if not path.startswith("encoder/"))
    assert trained == 50_920_848


@pytest.mark.parametrize("kernel", [(3, 1, 1), (3, 3, 3)])
def test_depthwise_convolution_equals_the_grouped_one(kernel):
    layer = DepthwiseConv(6, kernel, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(6.0)
    x = jax.random.normal(KEY, (2, 4, 5, 5, 6))
    grouped = grouped_convolution(x, layer.kernel[...])
    np.testing.assert_allclose(layer(x), grouped + jnp.arange(6.0), atol=1e-5)


def test_batch_norm_uses_and_updates_its_statistics_only_as_told():
    layer = BatchNorm(3, dtype=jnp.dtype("float32"))
    x = jax.random.normal(KEY, (4, 5, 3)) * 2 + 1
    rows = np.asarray(x).reshape(-1, 3)
    still, running = layer(x, False)
    assert running == {}
    np.testing.assert_allclose(still, x / np.sqrt(1 + 1e-5), rtol=1e-5)
    y, running = layer(x, True)
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 3).std(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(running["mean"], 0.1 * rows.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * rows.var(axis=0, ddof=1), rtol=1e-4)


@pytest.mark.slow  # two gradients, one of them unrolled
def test_scan_and_remat_change_nothing():
    params = awake(SMALL)

    def outputs(config):
        model = config.model()

        def loss(params):
            logits, statistics = model.apply(params, VIDEO, KEYS, method="train")
            return (logits**2).sum(), statistics

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    plain, other = outputs(SMALL), outputs(dataclasses.replace(SMALL, scan=False, remat="full"))
    assert len(plain[1]) == 4  # two local blocks of mean and variance, stacked over the layers
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), plain, other)


@pytest.mark.slow  # compiles the model three times
def test_a_fresh_model_sees_what_the_image_transformer_sees():
    """Local blocks begin as zero, and so do attention and MLP of the global ones."""
    params = jax.jit(SMALL.model().init)(KEY)
    bare = dataclasses.replace(SMALL, local_blocks=0)
    shared = flatten_paths(bare.model().shapes())
    flat = {path: leaf for path, leaf in flatten_paths(params).items() if path in shared}
    np.testing.assert_allclose(
        compiled(SMALL, "features")(params, VIDEO),
        compiled(bare, "features")(unflatten_paths(flat), VIDEO),
        atol=1e-6,
    )
    params.pop("balance")
    logits = compiled(dataclasses.replace(SMALL, frozen=True))(params, VIDEO)
    np.testing.assert_array_equal(logits, logits[:1].repeat(3, 0))  # the query is still zero


def test_time_reaches_the_logits():
    params = awake(SMALL)
    logits = [compiled(SMALL)(params, video) for video in (VIDEO, VIDEO[:, ::-1])]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.slow  # compiles the model seven times
def test_training_differs_from_evaluation_only_with_keys():
    kinetics = dataclasses.replace(SMALL, local_blocks=0)
    params = awake(kinetics)
    still = compiled(kinetics)(params, VIDEO)
    np.testing.assert_allclose(still, compiled(kinetics)(params, VIDEO, KEYS), atol=1e-5)
    for change in (
        {"drop_path": 0.5},
        {"global_drop_path": 0.5},
        {"mlp_dropout": 0.5},
        {"head_dropout": 0.5},
    ):
        drawn = compiled(dataclasses.replace(kinetics, **change))(params, VIDEO, KEYS)
        assert not np.allclose(still, drawn, atol=1e-4), change
    params = awake(SMALL)
    still, batch = compiled(SMALL)(params, VIDEO), compiled(SMALL)(params, VIDEO, KEYS)
    assert not np.allclose(still, batch, atol=1e-4)


def test_bfloat16_stays_close_to_float32():
    params = awake(SMALL)
    low = dataclasses.replace(SMALL, dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low.model().shapes()))
    exact, rough = compiled(SMALL)(params, VIDEO), compiled(low)(params, VIDEO)
    assert rough.dtype == jnp.float32 and np.abs(rough - exact).max() > 0
    np.testing.assert_allclose(rough, exact, atol=0.1 * float(np.abs(exact).max()))


def test_flops_agree_with_the_compiler_on_an_unrolled_model():
    config = dataclasses.replace(SMALL, encoder=tower(96, 3, 4), resolution=48, scan=False)
    model = config.model()
    video = jnp.zeros((2, 4, 48, 48, 3), jnp.uint8)
    analysis = jax.jit(model.apply).lower(model.shapes(), video).compile().cost_analysis()
    counted, ours = analysis["flops"] / 2, config.forward_flops()
    assert 0.97 * ours <= counted <= 1.25 * ours


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniFormerV2Config.of_size("bas"), "did you mean 'base'"),
        (lambda: UniFormerV2Config.of_size("base", style="kinetic"), "did you mean 'kinetics'"),
        (lambda: UniFormerV2Config.of_size("tiny").model(), "classes is 0"),
        (lambda: dataclasses.replace(SMALL, frames=5), "5 frames cannot be cut"),
        (lambda: dataclasses.replace(SMALL, global_layers=(1, 3)), r"blocks, one at least, 0 to 2"),
        (lambda: dataclasses.replace(SMALL, global_layers=()), "one at least"),
        (lambda: dataclasses.replace(SMALL, local_blocks=3), "expected 0, 1 or 2"),
    ],
)
def test_settings_that_make_no_model(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_clip_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"video is \(4, 24, 24, 3\).*expects \(4, 16, 16, 3\)"):
        SMALL.model().apply(awake(SMALL), jnp.zeros((1, 4, 24, 24, 3)))
