"""The VideoMAE models beyond the golden cases: sizes, dtypes, errors, initial values, FLOPs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.ops import masking
from internvideo_jax.types import flatten_paths

TINY = {"frames": 4, "resolution": 16, "patch": 8, "dtype": "float32"}
KEY = jax.random.key(0)


def count(config) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(config.model().shapes()))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("small", (24_029_376, 25_808_064, 27_586_752)),
        ("base", (94_210_944, 101_307_264, 108_403_584)),
        ("large", (317_782_016, 330_389_504, 342_996_992)),
        ("huge", (645_659_392, 658_266_880, 670_874_368)),
        ("giant", (1_026_306_560, 1_039_676_648, 1_053_046_736)),
        ("giant16", (1_026_998_120, 1_040_368_208, 1_053_738_296)),
        ("gigantic", (1_859_244_408, 1_873_787_096, 1_888_329_784)),
    ],
)
def test_published_pretraining_parameter_counts(size, expected):
    found = tuple(count(PretrainConfig.of_size(size, decoder_depth=d)) for d in (4, 8, 12))
    assert found == expected


def test_published_wide_decoder_of_vit_h():
    assert count(PretrainConfig.of_size("huge_nju", decoder_depth=12)) == 692_487_296


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("small", (22_033_936, 22_153_286, 21_946_926)),
        ("base", (86_534_800, 86_773_190, 86_361_006)),
        ("large", (304_270_736, 304_588_486, 304_039_086)),
        ("huge", (632_119_440, 632_516_550, 631_829_934)),
        ("giant", (1_012_174_352, 1_012_611_142, 1_011_855_918)),
        ("gigantic", (1_843_910_928, 1_844_427_078, 1_843_534_638)),
    ],
)
def test_published_classifier_parameter_counts(size, expected):
    found = tuple(count(VideoMAEClassifierConfig.of_size(size, classes=k)) for k in (400, 710, 174))
    assert found == expected


@pytest.mark.parametrize(
    ("size", "depth", "gflops"), [("base", 4, 202.7), ("large", 8, 663.7), ("huge", 8, 983.3)]
)
def test_training_flops_per_clip(size, depth, gflops):
    """Hand-counted matmuls of forward and backward, 16 x 224 x 224, 90 % tube mask."""
    config = PretrainConfig.of_size(size, decoder_depth=depth)
    assert MaskedPixels(mask_ratio=0.9).flops(config) / 1e9 == pytest.approx(gflops, abs=0.05)


def test_flops_agree_with_the_compiler_on_an_unrolled_model():
    config = PretrainConfig.of_size(
        "tiny", decoder_depth=2, scan=False, **{**TINY, "resolution": 32}
    )
    model = config.model()
    video = jnp.zeros((2, 4, 32, 32, 3), jnp.uint8)
    visible, hidden = masking.sample("tube", jax.random.split(KEY, 2), config.grid, 0.5)
    compiled = jax.jit(model.apply).lower(model.shapes(), video, visible, hidden).compile()
    analysis = compiled.cost_analysis()
    counted = analysis["flops"] / 2
    ours = config.forward_flops(visible.shape[1], hidden.shape[1])
    # The compiler adds norms, softmax and GELU to the matmuls.
    assert ours <= counted <= 1.25 * ours


def test_bfloat16_stays_close_to_float32_with_float32_parameters():
    config = PretrainConfig.of_size("tiny", decoder_depth=2, **TINY)
    low = dataclasses.replace(config, dtype="bfloat16")
    params = config.model().init(KEY)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low.model().init(KEY)))
    video = jax.random.randint(KEY, (2, 4, 16, 16, 3), 0, 256).astype(jnp.uint8)
    visible, hidden = masking.sample("tube", jax.random.split(KEY, 2), config.grid, 0.5)
    exact = config.model().apply(params, video, visible, hidden)
    rough = low.model().apply(params, video, visible, hidden)
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.05)
    assert np.abs(rough - exact).max() > 0


def test_hidden_tokens_do_not_leak_into_the_prediction():
    config = PretrainConfig.of_size("tiny", decoder_depth=1, **TINY)
    model, video = config.model(), jax.random.uniform(KEY, (1, 4, 16, 16, 3))
    params = model.init(KEY)
    visible, hidden = jnp.array([[0, 3, 4, 7]]), jnp.array([[1, 2, 5, 6]])
    seen = model.apply(params, video, visible, hidden)
    # Token 1 is the top right quarter of the first two frames.
    changed = video.at[:, :2, :8, 8:].set(0.0)
    np.testing.assert_array_equal(seen, model.apply(params, changed, visible, hidden))
    changed = video.at[:, :2, :8, :8].set(0.0)  # token 0 is visible
    assert np.abs(seen - model.apply(params, changed, visible, hidden)).max() > 1e-4


def shallow(config):
    """Two layers of the widths of `config`: as many values as a distribution needs."""
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, depth=2))


def test_initial_values_follow_the_reference():
    config = shallow(PretrainConfig.of_size("base", decoder_depth=1, frames=2, resolution=16))
    params = flatten_paths(jax.jit(config.model().init)(KEY))
    qkv = np.asarray(params["encoder/blocks/attn/qkv/kernel"])
    limit = np.sqrt(6 / (768 + 3 * 768))
    assert np.abs(qkv).max() <= limit and qkv.std() == pytest.approx(limit / 3**0.5, rel=0.01)
    embed = np.asarray(params["encoder/patch_embed/kernel"])
    assert np.abs(embed).max() == pytest.approx(1536**-0.5, rel=0.01)
    bridge = np.asarray(params["encoder_to_decoder/kernel"])
    assert np.abs(bridge).max() == pytest.approx(768**-0.5, rel=0.01)
    assert np.abs(np.asarray(params["mask_token"])).max() <= 0.02
    assert (np.asarray(params["encoder/blocks/attn/qkv/q_bias"]) == 0).all()
    head = shallow(VideoMAEClassifierConfig.of_size("small", classes=10, frames=2, resolution=16))
    params = flatten_paths(jax.jit(head.model().init)(KEY))
    assert np.asarray(params["head/kernel"]).std() == pytest.approx(0.02 * 0.001, rel=0.1)
    assert np.asarray(params["encoder/blocks/mlp/fc1/kernel"]).std() == pytest.approx(
        0.02, rel=0.02
    )


def test_a_config_may_have_lists_for_tuples():
    config = VideoMAEClassifierConfig.of_size("small", classes=3)
    config = dataclasses.replace(config, pixel_mean=[0.4] * 3, pixel_std=[0.2] * 3)
    assert config.model().shapes()["head"]["kernel"].shape[-1] == 3


def test_a_clip_of_another_shape_is_refused():
    model = PretrainConfig.of_size("tiny", decoder_depth=1, **TINY).model()
    with pytest.raises(ValueError, match=r"video is \(4, 24, 24, 3\).*expects \(4, 16, 16, 3\)"):
        model.apply(model.init(KEY), jnp.zeros((1, 4, 24, 24, 3)), method="features")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PretrainConfig.of_size("bas", decoder_depth=4), "did you mean 'base'"),
        (lambda: VideoMAEClassifierConfig.of_size("tiny").model(), "classes is 0"),
        (
            lambda: VideoMAEClassifierConfig.of_size("tiny", classes=2, pooling="max").model(),
            "unknown pooling 'max'",
        ),
        (
            lambda: PretrainConfig.of_size("tiny", decoder_depth=1, resolution=50).model(),
            "image size 50 is not divisible by the patch size 8; the nearest sizes are 48 and 56",
        ),
    ],
)
def test_settings_that_make_no_model(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_training_differs_from_evaluation_only_with_keys():
    config = VideoMAEClassifierConfig.of_size(
        "tiny", classes=5, drop_path=0.5, head_dropout=0.5, head_scale=1.0, **TINY
    )
    model, video = config.model(), jax.random.uniform(KEY, (4, 4, 16, 16, 3))
    params, keys = model.init(KEY), jax.random.split(KEY, 4)
    still = model.apply(params, video)
    assert not np.allclose(still, model.apply(params, video, keys))
    calm = dataclasses.replace(config, drop_path=0.0, head_dropout=0.0).model()
    np.testing.assert_allclose(still, calm.apply(params, video, keys), atol=1e-6)


def test_learnable_table_gets_no_gradient():
    config = VideoMAEClassifierConfig.of_size("tiny", classes=3, pos_table="learnable", **TINY)
    model, video = config.model(), jax.random.uniform(KEY, (2, 4, 16, 16, 3))
    gradient = jax.grad(lambda p: (model.apply(p, video) ** 2).sum())(model.init(KEY))
    assert (gradient["encoder"]["pos_embed"] == 0).all()
    assert np.abs(gradient["encoder"]["patch_embed"]["kernel"]).max() > 0
