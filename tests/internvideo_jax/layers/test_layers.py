"""The block stack: scan, remat, intermediates and drop path change nothing that they should not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from internvideo_jax.layers.attention import AttentionConfig
from internvideo_jax.layers.block import BlockConfig
from internvideo_jax.layers.block_stack import run_stack, stacked_blocks
from internvideo_jax.layers.drop_path import drop_path, dropout
from internvideo_jax.layers.init import Init, draws
from internvideo_jax.layers.mlp import MLPConfig
from internvideo_jax.layers.pos_embed import fixed_table, separable_sincos, sincos
from internvideo_jax.types import flatten_paths

DEPTH = 3
KEY = jax.random.key(0)


def stack(layer_scale: float = 0.1):
    return stacked_blocks(
        BlockConfig(16, AttentionConfig(2), MLPConfig(24), layer_scale=layer_scale),
        DEPTH,
        init=Init("normal"),
        dtype=jnp.float32,
        rngs=nnx.Rngs(params=1),
    )


def outputs(x, **options):
    graph, params = nnx.split(stack())

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient_of(params):
        y, intermediates = run_stack(nnx.merge(graph, params), x, **options)
        return (y**2).sum(), (y, intermediates)

    gradient, (y, intermediates) = gradient_of(params)
    return y, intermediates, nnx.to_pure_dict(gradient)


X = jax.random.normal(KEY, (2, 5, 16))


@pytest.fixture(scope="module")
def plain():
    return outputs(X)


@pytest.mark.parametrize(
    "options",
    [
        {"scan": False},
        {"remat": "full"},
        {"remat": "dots"},
        {"remat": "attention"},
        {"scan": False, "remat": "full"},
        {"intermediate_layers": (0, 2)},
    ],
)
def test_execution_options_do_not_change_the_result(plain, options):
    y, _, gradient = plain
    other, _, other_gradient = outputs(X, **options)
    np.testing.assert_allclose(y, other, atol=1e-5)
    for path, leaf in flatten_paths(gradient).items():
        found = flatten_paths(other_gradient)[path]
        np.testing.assert_allclose(leaf, found, atol=1e-4, err_msg=path)


def test_intermediates_are_the_outputs_of_their_layers():
    _, intermediates, _ = outputs(X, intermediate_layers=(2, 0, -2))
    assert intermediates.shape == (3, *X.shape)
    graph, params = nnx.split(stack())
    x, after = X, []
    for i in range(DEPTH):
        x = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], params))(x)
        after.append(x)
    np.testing.assert_allclose(intermediates, jnp.stack([after[2], after[0], after[1]]), atol=1e-5)


def test_layers_start_different():
    kernel = nnx.to_pure_dict(nnx.split(stack())[1])["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (DEPTH, 16, 24)
    assert not np.allclose(kernel[0], kernel[1])


def test_unknown_remat_policy():
    with pytest.raises(ValueError, match="unknown remat policy 'ful': did you mean 'full'"):
        run_stack(stack(), X, remat="ful")


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    keys = jax.random.split(KEY, 4000)
    y = drop_path(jnp.ones((4000, 2, 3)), keys, 0.25, 0)
    per_example = np.asarray(y[:, 0, 0])
    assert set(np.round(per_example, 5)) == {0.0, np.float32(1.33333)}
    assert (np.asarray(y) == per_example[:, None, None]).all()
    np.testing.assert_allclose(per_example.mean(), 1.0, atol=0.03)


def test_the_two_branches_of_a_layer_draw_apart():
    keys = jax.random.split(KEY, 200)
    a, b = (drop_path(jnp.ones((200, 1, 1)), keys, 0.5, which) for which in (0, 1))
    assert 0.3 < float((a == b).mean()) < 0.7


def test_the_first_layer_is_never_dropped():
    keys = jax.random.split(KEY, 64)
    x = jnp.ones((64, 1, 16)) * jnp.arange(16)
    graph, params = nnx.split(stack(layer_scale=1.0))
    first = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[:1], params))
    np.testing.assert_allclose(
        run_stack(first, x, keys=keys, drop_path=0.9)[0], run_stack(first, x)[0], rtol=1e-5
    )


def test_drop_path_depends_on_the_example_not_on_the_batch():
    keys = jax.random.split(KEY, 8)
    x = jax.random.normal(KEY, (8, 5, 16))
    blocks = stack(layer_scale=1.0)
    whole, _ = run_stack(blocks, x, keys=keys, drop_path=0.5)
    part, _ = run_stack(blocks, x[3:6], keys=keys[3:6], drop_path=0.5)
    np.testing.assert_allclose(whole[3:6], part, atol=1e-5)


def test_dropout_keeps_the_mean():
    keys = jax.random.split(KEY, 500)
    out = dropout(jnp.ones((500, 40)), keys, 0.3)
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.02)
    assert set(np.round(np.unique(out), 4)) == {0.0, np.float32(1.4286)}


def test_separable_table_tells_all_positions_apart():
    table = separable_sincos((3, 4, 5), 32)
    assert table.shape == (60, 32)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 10 * np.eye(60)
    assert distance.min() > 0.1
    # Positions that share row and column differ in the channels of time only.
    one, other = table[0], table[20]
    assert (one[-20:] == other[-20:]).all() and (one[:12] != other[:12]).any()


def test_resized_table_of_its_own_grid_is_the_flat_one():
    np.testing.assert_array_equal(fixed_table("resized", (2, 3, 3), 8, (2, 3, 3)), sincos(18, 8))
    with pytest.raises(ValueError, match="unknown position table 'rotary'"):
        fixed_table("rotary", (2, 3, 3), 8, (2, 3, 3))


def test_draws_have_the_keys_of_the_library():
    ours, theirs = draws(jax.random.key(3)), nnx.Rngs(params=3)
    for _ in range(4):
        found, expected = ours.params(), theirs.params()
        assert (jax.random.key_data(found) == jax.random.key_data(expected)).all()
