"""FLOPs counted from the jaxpr, against sums done by hand and the analytic figures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from internvideo_jax.compile_check.flops import count
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig

SMALL = {"frames": 4, "resolution": 32, "patch": 8}
BATCH, VISIBLE, DECODED = 2, 8, 24
A, B = jnp.zeros((4, 8)), jnp.zeros((8, 16))
PRODUCT = 2 * 4 * 8 * 16


def flops(function, *arguments) -> float:
    return count(jax.make_jaxpr(function)(*arguments)).total


def test_products_and_convolutions():
    assert flops(jnp.matmul, A, B) == PRODUCT
    x, y = jnp.zeros((3, 5, 4, 8)), jnp.zeros((3, 5, 8, 16))
    assert flops(lambda x, y: jnp.einsum("bhnc,bhcd->bhnd", x, y), x, y) == 15 * PRODUCT
    image, kernel = jnp.zeros((1, 3, 8, 8)), jnp.zeros((16, 3, 2, 2))
    conv = flops(lambda x, k: jax.lax.conv(x, k, (2, 2), "VALID"), image, kernel)
    assert conv == 2 * (16 * 4 * 4) * (3 * 2 * 2)


def test_a_scan_counts_every_pass_and_a_branch_the_dearest():
    def loop(b):
        return jax.lax.scan(lambda a, _: (a @ b, None), jnp.zeros((4, 8)), None, length=7)[0]

    assert flops(loop, jnp.zeros((8, 8))) == 7 * 2 * 4 * 8 * 8
    branch = flops(lambda p: jax.lax.cond(p, lambda: A @ B, lambda: jnp.zeros((4, 16))), True)
    assert branch == PRODUCT
    found = count(
        jax.make_jaxpr(
            lambda b: jax.lax.while_loop(lambda a: a.sum() < 1, lambda a: a @ b, jnp.zeros((4, 8)))
        )(jnp.zeros((8, 8)))
    )
    assert (found.total, found.unknown_loops) == (2 * 4 * 8 * 8, 1)


def test_shard_map_counts_all_devices():
    mesh = jax.sharding.AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,))
    part = PartitionSpec("x")
    mapped = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(part, PartitionSpec()), out_specs=part)
    assert flops(mapped, A, B) == PRODUCT


def pretrain(**changes) -> PretrainConfig:
    return PretrainConfig.of_size("tiny", decoder_depth=2, **SMALL, **changes)


def loss(config: PretrainConfig):
    video = jnp.zeros((BATCH, 4, 32, 32, 3), jnp.uint8)
    tokens = jnp.tile(jnp.arange(config.tokens), (BATCH, 1))
    visible, decoded = tokens[:, :VISIBLE], tokens[:, VISIBLE : VISIBLE + DECODED]
    model = config.model()
    return lambda params: model.apply(params, video, visible, decoded).sum(), model.shapes()


@pytest.mark.parametrize("scan", [True, False])
def test_forward_is_the_analytic_figure(scan):
    config = pretrain(scan=scan)
    function, shapes = loss(config)
    assert flops(function, shapes) == BATCH * config.forward_flops(VISIBLE, DECODED)


def test_classifier_forward_is_the_analytic_figure():
    config = VideoMAEClassifierConfig.of_size("tiny", classes=5, **SMALL)
    model = config.model()
    video = jnp.zeros((BATCH, 4, 32, 32, 3), jnp.uint8)
    found = flops(lambda params: model.apply(params, video), model.shapes())
    assert found == BATCH * config.forward_flops()


def test_training_is_three_forwards_but_for_the_pixels():
    """Nothing is differentiated with respect to the pixels, so that product is missing."""
    config = pretrain()
    function, shapes = loss(config)
    expected = 3 * config.forward_flops(VISIBLE, DECODED) - config.embed_flops(VISIBLE)
    assert flops(jax.grad(function), shapes) == BATCH * expected


def test_full_remat_is_seen():
    """Everything in the blocks is computed again except the last product of each layer."""
    config = pretrain(remat="full")
    function, shapes = loss(config)
    again = 0.0
    for tower, tokens in ((config.encoder, VISIBLE), (config.decoder, VISIBLE + DECODED)):
        last = 2 * tokens * tower.width * tower.hidden * tower.depth
        again += tower.flops(tokens) - last
    plain = 3 * config.forward_flops(VISIBLE, DECODED) - config.embed_flops(VISIBLE)
    np.testing.assert_allclose(flops(jax.grad(function), shapes), BATCH * (plain + again))
