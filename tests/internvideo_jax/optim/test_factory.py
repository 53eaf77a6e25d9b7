"""Optimizer groups by name: decay, layer rates, freezing, clipping, averages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.config import OptimConfig
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.optim.ema import update_ema
from internvideo_jax.optim.factory import decay_mask, layer_scales, make_optimizer
from internvideo_jax.optim.schedules import cosine
from internvideo_jax.types import flatten_paths

TINY = {"frames": 4, "resolution": 16, "patch": 8, "dtype": "float32"}
CLASSIFIER = VideoMAEClassifierConfig.of_size("tiny", classes=3, layer_scale=0.1, **TINY).model()
KEY = jax.random.key(0)


def one_step(config: OptimConfig, gradient_scale: float = 1.0, rate: float = 0.1):
    params = CLASSIFIER.init(KEY)
    optimizer = make_optimizer(config, CLASSIFIER.shapes(), lambda step: rate)
    gradient = jax.tree.map(lambda p: gradient_scale * jnp.ones_like(p), params)
    state = optimizer.init(params)
    moved, state, report = optimizer.update(gradient, state, params, jnp.int32(0))
    return flatten_paths(params), flatten_paths(moved), state, report


def test_only_matmul_kernels_decay_even_where_stacked_biases_have_two_axes():
    pretrain = PretrainConfig.of_size("tiny", decoder_depth=2, cosine=True, **TINY).model()
    for model in (CLASSIFIER, pretrain):
        for path, decayed in flatten_paths(decay_mask(model.shapes())).items():
            assert decayed == path.endswith("kernel"), path


def test_first_adam_step_moves_by_the_learning_rate_plus_decay():
    before, after, _, report = one_step(OptimConfig(weight_decay=0.5))
    for path in before:
        decay = 0.5 if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(
            after[path], before[path] - 0.1 * (1.0 + decay * before[path]), atol=1e-5
        )
    assert report["lr"] == np.float32(0.1)


def test_layer_decay_is_a_vector_over_the_stack():
    before, after, _, _ = one_step(OptimConfig(weight_decay=0.0, layer_decay=0.5))
    moved = {path: np.asarray(before[path] - after[path]) / 0.1 for path in before}
    np.testing.assert_allclose(moved["encoder/patch_embed/kernel"], 0.5**5, rtol=1e-3)
    for layer, power in enumerate((4, 3, 2, 1)):
        np.testing.assert_allclose(
            moved["encoder/blocks/mlp/fc1/bias"][layer], 0.5**power, rtol=1e-3
        )
    np.testing.assert_allclose(moved["head/kernel"], 1.0, rtol=1e-3)
    np.testing.assert_allclose(moved["fc_norm/scale"], 1.0, rtol=1e-3)


def test_layer_decay_without_a_stack_is_refused():
    with pytest.raises(ValueError, match="needs one stack of layers at 'tower/blocks'"):
        layer_scales(OptimConfig(layer_decay=0.5, layer_stack="tower/blocks"), CLASSIFIER.shapes())


def test_layer_decay_leaves_what_is_named_at_the_full_rate():
    config = OptimConfig(weight_decay=0.0, layer_decay=0.5, layer_decay_free=("patch_embed/bias$",))
    before, after, _, _ = one_step(config)
    moved = {path: np.asarray(before[path] - after[path]) / 0.1 for path in before}
    np.testing.assert_allclose(moved["encoder/patch_embed/bias"], 1.0, rtol=1e-3)
    np.testing.assert_allclose(moved["encoder/patch_embed/kernel"], 0.5**5, rtol=1e-3)


def test_the_lowest_layers_keep_their_bits_and_are_not_clipped_for():
    config = OptimConfig(
        freeze_layers=3,
        freeze=("^encoder/patch_embed/",),
        weight_decay=0.5,
        clip_norm=1.0,
        layer_decay=0.5,
    )
    before, after, state, report = one_step(config, gradient_scale=2.0)
    norm = 0.0
    for path in before:
        was, now = np.asarray(before[path]), np.asarray(after[path])
        if path.startswith("encoder/blocks/"):
            assert was[:3].tobytes() == now[:3].tobytes(), path
            assert (was[3] != now[3]).all(), path
            norm += 4.0 * was[3].size
        else:
            frozen = path.startswith("encoder/patch_embed/")
            assert (was.tobytes() == now.tobytes()) == frozen, path
            norm += 4.0 * was.size
    np.testing.assert_allclose(report["grad_norm"], norm**0.5, rtol=1e-5)
    for path, leaf in flatten_paths(state).items():
        if "encoder/blocks/" in path:
            assert not np.asarray(leaf)[:3].any(), path


@pytest.mark.parametrize("layers", [4, 5, -1])
def test_freezing_layers_that_are_not_there(layers):
    config = OptimConfig(freeze_layers=layers)
    with pytest.raises(ValueError, match="has 4 layers, expected fewer; to freeze all give"):
        make_optimizer(config, CLASSIFIER.shapes(), lambda step: 0.1)


def test_frozen_parameters_neither_move_nor_keep_moments():
    config = OptimConfig(freeze=("^encoder/",), layer_decay=0.75, clip_norm=1.0)
    before, after, state, _ = one_step(config)
    for path in before:
        same = bool((before[path] == after[path]).all())
        assert same == path.startswith("encoder/"), path
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    trained = sum(leaf.size for path, leaf in before.items() if not path.startswith("encoder/"))
    assert held <= 2 * trained + 8


def test_frozen_parameters_get_no_gradient():
    optimizer = make_optimizer(
        OptimConfig(freeze=("blocks",)), CLASSIFIER.shapes(), lambda step: 0.1
    )
    video = jnp.ones((1, 4, 16, 16, 3))

    def loss(params):
        return CLASSIFIER.apply(optimizer.stop_frozen(params), video).sum()

    gradient = flatten_paths(jax.grad(loss)(CLASSIFIER.init(KEY)))
    for path, leaf in gradient.items():
        if "blocks" in path:
            assert (leaf == 0).all(), path
    assert np.abs(gradient["encoder/patch_embed/kernel"]).max() > 0


def test_freeze_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match="freeze pattern 'decoder' matches no parameter"):
        make_optimizer(OptimConfig(freeze=("decoder",)), CLASSIFIER.shapes(), lambda step: 0.1)


def test_clipping_bounds_the_gradient_but_reports_its_norm():
    # Adam divides by the gradient's own size, so look at the moments.
    _, _, state, report = one_step(OptimConfig(clip_norm=2.0), gradient_scale=10.0)
    mean = [leaf for path, leaf in flatten_paths(state).items() if "/mu/" in path]
    norm = np.sqrt(sum(float(jnp.square(leaf / 0.1).sum()) for leaf in mean))
    assert norm == pytest.approx(2.0, rel=1e-3)
    size = sum(leaf.size for leaf in jax.tree.leaves(CLASSIFIER.shapes()))
    assert float(report["grad_norm"]) == pytest.approx(10.0 * size**0.5, rel=1e-3)


def test_schedule_agrees_between_numpy_and_jax():
    schedule = cosine(1e-3, 1e-5, total=50, warmup=7)
    table = schedule(np.arange(60))
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(60))
    np.testing.assert_allclose(traced, table, rtol=1e-5, atol=1e-9)
    assert table[0] == 0.0 and table[6] == 1e-3 and table[7] == 1e-3
    assert table[-1] == pytest.approx(1e-5)
    assert cosine(1e-3, 1e-3, total=5, warmup=1)(np.arange(5))[1:] == pytest.approx(1e-3)


def test_warm_up_longer_than_the_run():
    with pytest.raises(ValueError, match="warm-up takes 10 of 10 steps"):
        cosine(1e-3, 0.0, total=10, warmup=10)


def test_ema_starts_near_the_parameters():
    params, ema = {"a": jnp.ones(3)}, {"a": jnp.zeros(3)}
    early = update_ema(ema, params, 0.999, jnp.int32(0))["a"]
    late = update_ema(ema, params, 0.999, jnp.int32(10**6))["a"]
    np.testing.assert_allclose(early, 0.9, rtol=1e-6)
    np.testing.assert_allclose(late, 0.001, rtol=1e-3)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("ramp", [True, False])
def test_the_average_is_the_documented_sum(decay, ramp):
    """Against the formula in float64 over steps whose parameters move; plain is timm's."""
    rng = np.random.default_rng(0)
    first, moves = rng.normal(size=5), rng.normal(size=(40, 5))
    expected, ema = first.copy(), {"a": jnp.asarray(first, jnp.float32)}
    for step, params in enumerate(moves):
        rate = min(decay, (1 + step) / (10 + step)) if ramp else decay
        expected = rate * expected + (1 - rate) * params
        ema = update_ema(
            ema, {"a": jnp.asarray(params, jnp.float32)}, decay, jnp.int32(step), ramp=ramp
        )
        np.testing.assert_allclose(ema["a"], expected, rtol=1e-4, atol=1e-6)


def test_the_ramp_is_the_default_and_reaches_the_decay_where_the_help_says():
    assert OptimConfig().ema_ramp
    zero, one = {"a": jnp.zeros(())}, {"a": jnp.ones(())}
    for step, decay in ((0, 0.9999), (10, 0.9999), (89_991, 0.9999), (3, 0.3)):
        default = 1 - float(update_ema(zero, one, decay, jnp.int32(step))["a"])
        assert default == pytest.approx(min(decay, (1 + step) / (10 + step)), rel=1e-4)
    assert (1 + 89_990) / (10 + 89_990) >= 0.9999 > (1 + 89_989) / (10 + 89_989)
