"""ViCLIP beyond the golden cases: sizes, masks, images, captions, bad input."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from internvideo_jax.families.viclip.model import FRAMES, IMAGE, TEXT, ViCLIPConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.ops.position_tables import resize_image, resize_length
from internvideo_jax.run.build import check_clip, check_reads, check_vocabulary
from internvideo_jax.types import flatten_paths, unflatten_paths
from tests.internvideo_jax import small
from tests.recipes import shipped

KEY = jax.random.key(0)
SMALL = ViCLIPConfig(
    encoder=tower(24, 2, 2),
    text=tower(16, 2, 2),
    embedding=12,
    context=8,
    vocab=30,
    **small.clip(),
)
VIDEO = jax.random.uniform(KEY, (2, 4, 16, 16, 3))
IDS = jnp.array([[28, 3, 4, 29, 0, 0, 0, 0], [28, 7, 29, 0, 0, 0, 0, 0]], jnp.int32)


@functools.cache
def weights():
    """Every parameter drawn, so that no table is zero."""
    rng = np.random.default_rng(0)
    flat = {
        path: jnp.asarray(0.3 * rng.normal(size=leaf.shape) + path.endswith("scale"), jnp.float32)
        for path, leaf in sorted(flatten_paths(SMALL.model().shapes()).items())
    }
    return unflatten_paths({**flat, "temperature": jnp.float32(0.05)})


@functools.cache
def compiled(config: ViCLIPConfig, method: str):
    return jax.jit(functools.partial(config.model().apply, method=method))


def video(x, *arguments, config=SMALL):
    return np.asarray(compiled(config, "encode_video")(weights(), x, *arguments))


def text(ids):
    return np.asarray(compiled(SMALL, "encode_text")(weights(), ids))


@pytest.mark.parametrize(
    ("size", "frames", "total", "vision"),
    [
        ("base", 8, 149_620_737 + 8 * 768 - 45 * 512, 86_192_640 + 8 * 768),
        ("large", 8, 427_616_513 + 8 * 1024 - 45 * 768, 303_966_208 + 8 * 1024),
    ],
)
def test_published_parameter_counts(size, frames, total, vision):
    """Those of OpenAI's CLIP, a table of frames more and 45 text positions less."""
    shapes = flatten_paths(ViCLIPConfig.of_size(size, frames=frames).model().shapes())
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in shapes.items()}
    assert sum(sizes.values()) == total
    assert sum(n for path, n in sizes.items() if path.startswith("encoder/")) == vision


@pytest.mark.parametrize(
    ("size", "grid", "visible"),
    [("base", (8, 14, 14), 157), ("large", (8, 16, 16), 205), ("base32", (8, 7, 7), 40)],
)
def test_grids_and_what_a_mask_leaves(size, grid, visible):
    config = ViCLIPConfig.of_size(size)
    assert config.grid == grid and config.tokens == np.prod(grid)
    assert config.tokens - int(0.9 * config.tokens) == visible
    assert ViCLIPConfig.of_size("large336").grid == (8, 24, 24)


def test_keeping_every_patch_is_no_mask_and_dropped_ones_do_not_count():
    every = jnp.broadcast_to(jnp.arange(16), (2, 16))
    np.testing.assert_allclose(video(VIDEO, None, every), video(VIDEO), atol=1e-5)
    few = jnp.array([[0, 5, 6], [1, 9, 15]])
    painted = np.array(VIDEO).reshape(2, 4, 2, 8, 2, 8, 3)
    painted[0, 3, 1, :, 1] = 0  # patch 15, which the first clip drops and the second keeps
    painted[1, 3, 1, :, 1] = 0
    painted = painted.reshape(VIDEO.shape)
    change = np.abs(video(painted, None, few) - video(VIDEO, None, few)).max(axis=1)
    assert change[0] == 0 and change[1] > 1e-3


def test_pixels_may_be_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, VIDEO.shape).astype(np.uint8)
    np.testing.assert_allclose(video(pixels), video(pixels / np.float32(255)), atol=1e-5)


def test_the_order_of_frames_matters_through_their_table_only():
    assert np.abs(video(VIDEO) - video(VIDEO[:, ::-1])).max() > 1e-3
    still = {**weights(), "encoder": {**weights()["encoder"]}}
    table = still["encoder"]["pos_embed"]
    still["encoder"]["pos_embed"] = {**table, "temporal": jnp.zeros((4, 24))}
    forward, backward = (compiled(SMALL, "encode_video")(still, x) for x in (VIDEO, VIDEO[:, ::-1]))
    np.testing.assert_allclose(forward, backward, atol=1e-5)


def test_an_image_is_a_clip_of_one_frame():
    assert video(VIDEO[:, :1]).shape == (2, 12)
    visible = jnp.array([[0, 3], [1, 2]])
    assert np.isfinite(video(VIDEO[:, :1], None, visible)).all()
    beyond = video(VIDEO[:, :1], None, jnp.array([[0, 3], [1, 9]]))  # it has four patches
    assert np.isfinite(beyond[0]).all() and np.isnan(beyond[1]).all()
    for frames in (2, 3):
        with pytest.raises(ValueError, match=r"video is \(\d, 16, 16, 3\).*\(4, 16, 16, 3\), or T"):
            video(VIDEO[:, :frames])


def test_a_caption_ends_at_its_end_token():
    padded = np.array(IDS)
    padded[0, 4:] = 9  # behind the end: a causal model cannot see it
    np.testing.assert_allclose(text(padded), text(IDS), atol=1e-6)
    changed = np.array(IDS)
    changed[0, 1] = 9
    assert np.abs(text(changed) - text(IDS))[0].max() > 1e-3
    twice = np.array(IDS)
    twice[0, 4:6] = 5, 29  # a second end: the first counts
    np.testing.assert_allclose(text(twice), text(IDS), atol=1e-6)


def test_ids_that_do_not_belong_to_the_model():
    with pytest.raises(ValueError, match=r"text ids are \(2, 7\).*\(B, 8\).*config.model.context"):
        text(IDS[:, :7])
    outside = np.array(IDS)
    outside[0, 2] = 30
    found = text(outside)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def test_call_gives_both_and_the_temperature_as_it_is():
    a, b, temperature = compiled(SMALL, "__call__")(weights(), VIDEO, IDS)
    np.testing.assert_allclose(a, video(VIDEO), atol=1e-5)
    np.testing.assert_allclose(b, text(IDS), atol=1e-5)
    assert temperature.shape == () and float(temperature) == np.float32(0.05)
    assert a.dtype == b.dtype == jnp.float32


@pytest.mark.slow  # compiles the gradient twice
def test_scan_and_remat_change_nothing():
    few = jnp.array([[0, 5, 6], [1, 9, 15]])

    def gradients(config):
        def loss(params):
            a, b, temperature = config.model().apply(params, VIDEO, IDS, None, few)
            return (a * b).sum() / temperature

        return jax.jit(jax.grad(loss))(weights())

    plain = gradients(SMALL)
    other = gradients(dataclasses.replace(SMALL, scan=False, remat="full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), plain, other)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain))


@pytest.mark.slow  # compiles the encoder twice
def test_drop_path_only_with_keys():
    dropping = dataclasses.replace(SMALL, drop_path=0.5)
    keys = jax.random.split(KEY, 2)
    np.testing.assert_allclose(video(VIDEO, config=dropping), video(VIDEO), atol=1e-5)
    drawn = [video(VIDEO, keys, config=dropping) for keys in (keys, jax.random.split(keys[0], 2))]
    assert not np.allclose(*drawn, atol=1e-4)


@pytest.mark.slow  # compiles the initial draws
def test_a_fresh_model_starts_at_its_temperature_and_without_frames():
    network = nnx.merge(SMALL.model()._graph, jax.jit(SMALL.model().init)(KEY))
    assert float(network.temperature[...]) == np.float32(0.01)
    assert not network.encoder.pos_embed.temporal[...].any()


@pytest.mark.slow  # compiles a larger model
def test_flops_agree_with_the_compiler_on_an_unrolled_model():
    config = dataclasses.replace(
        SMALL, encoder=tower(96, 2, 4), text=tower(64, 2, 4), resolution=32, scan=False
    )
    model, few = config.model(), 16
    clips, visible = jnp.zeros((2, 4, 32, 32, 3), jnp.uint8), jnp.zeros((2, few), jnp.int32)
    lowered = jax.jit(model.apply).lower(model.shapes(), clips, IDS, None, visible)
    counted = lowered.compile().cost_analysis()["flops"] / 2
    assert 0.97 * config.forward_flops(few) <= counted <= 1.25 * config.forward_flops(few)
    assert config.forward_flops() == config.forward_flops(config.tokens)


def test_position_tables_of_other_sizes():
    table = np.random.default_rng(0).normal(size=(17, 6)).astype(np.float32)
    assert resize_image(table, 4) is not table and (resize_image(table, 4) == table).all()
    assert resize_image(table, 3).shape == (10, 6)
    assert (resize_length(table, 5, longer="linear") == table[:5]).all()
    assert (resize_length(table, 20, longer="zero")[17:] == 0).all()
    with pytest.raises(ValueError, match="16 rows is not that of a class token and a square"):
        resize_image(table[1:], 4)
    with pytest.raises(ValueError, match="unknown rule 'cubic'"):
        resize_length(table, 20, longer="cubic")
    source = {IMAGE: table, FRAMES: table[:2], TEXT: table}
    longer = dataclasses.replace(SMALL, context=20)
    for given, filled in ((source, True), ({**source, "temperature": table[0, 0]}, False)):
        adapted = longer.adapt_weights(given)
        assert adapted[IMAGE].shape == (5, 6) and adapted[FRAMES].shape == (4, 6)
        assert (adapted[TEXT][17:] == 0).all() == filled


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViCLIPConfig.of_size("bas"), "did you mean 'base'"),
        (lambda: dataclasses.replace(SMALL, resolution=20), "not divisible by the patch size 8"),
        (lambda: dataclasses.replace(SMALL, embedding=0), "config.model.embedding = 0"),
        (lambda: dataclasses.replace(SMALL, temperature=0.0), "config.model.temperature = 0.0"),
        (lambda: dataclasses.replace(SMALL, attention="flsh"), "did you mean 'flash'"),
    ],
)
def test_settings_that_make_no_model(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_what_it_takes_from_a_batch():
    config = shipped.config("viclip-base-1", "smoke")
    check_reads(config)
    check_clip(config, "video")
    check_clip(config, "image")


def test_captions_that_do_not_fit_the_model():
    config = shipped.config("viclip-tiny")
    check_reads(config)
    check_vocabulary(config)
    short = dataclasses.replace(config, data=dataclasses.replace(config.data, text_length=16))
    with pytest.raises(ValueError, match=r"text_length = 16, config.model.context = 32"):
        check_reads(short)
    model = dataclasses.replace(config.model, vocab=49408)
    with pytest.raises(ValueError, match=r"'world' has 620 ids, config.model.vocab = 49408; set"):
        check_vocabulary(dataclasses.replace(config, model=model))


def test_the_sigmoid_loss_learns_its_bias():
    model = dataclasses.replace(SMALL, logit_bias=True).model()
    params = {**weights(), "bias": jnp.float32(-10.0)}
    assert flatten_paths(model.shapes()).keys() == flatten_paths(params).keys()
    objective = Contrastive(kind="sigmoid")
    batch = {
        "video": VIDEO,
        "text": IDS,
        "has_text": jnp.ones(2, bool),
        "index": jnp.arange(2),
        "position": jnp.arange(2),
    }

    def loss(bias):
        return objective.loss(model, {**params, "bias": bias}, batch, KEY, jnp.int32(0))[0].value()

    # All four pairs are called wrong at first, two are right: the loss falls as the bias rises.
    assert jax.jit(jax.grad(loss))(params["bias"]) < 0
