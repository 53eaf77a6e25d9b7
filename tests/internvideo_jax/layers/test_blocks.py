"""Blocks put together: order of norms, cross-attention, masks, and what a stack shares."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from internvideo_jax.layers.block import Beside, BlockConfig, block_sharding
from internvideo_jax.layers.block_stack import layer, run_stack, stacked_blocks, step_stack
from internvideo_jax.layers.init import Init
from internvideo_jax.ops.attention import Cache

DEPTH, WIDTH, CONTEXT = 2, 16, 12
FLOAT = jnp.dtype("float32")


def blocks(**changes):
    config = BlockConfig(WIDTH, 2, 24, **changes)
    return stacked_blocks(config, DEPTH, init=Init("xavier"), dtype=FLOAT, rngs=nnx.Rngs(params=0))


def draw(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


MASK = jnp.asarray([[True] * 4 + [False], [True] * 3 + [False] * 2])
BESIDE = Beside(context=draw(2, 5, CONTEXT, seed=2), context_mask=MASK)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_block_is_its_parts_in_their_order(order):
    stack = blocks(order=order, context=CONTEXT)
    block, x = layer(stack, 0), draw(2, 3, WIDTH)
    cross = block.cross
    assert cross is not None and block.norm_cross is not None and BESIDE.context is not None
    context = BESIDE.context
    parts = (
        (block.norm1, block.attn),
        (block.norm_cross, lambda y: cross(y, context, MASK)),
        (block.norm2, block.mlp),
    )
    expected = x
    for norm, part in parts:
        pre = order == "pre"
        expected = expected + part(norm(expected)) if pre else norm(expected + part(expected))
    np.testing.assert_allclose(block(x, beside=BESIDE), expected, atol=1e-6)
    with pytest.raises(ValueError, match="cross-attention and was given no context"):
        block(x)


def test_what_a_block_can_not_be():
    with pytest.raises(ValueError, match="unknown order of norms 'after'; known: pre, post"):
        BlockConfig(WIDTH, 2, 24, order="after")


def test_parameters_of_cross_attention_are_sharded_and_others_have_none():
    plain, crossed = BlockConfig(WIDTH, 2, 24), BlockConfig(WIDTH, 2, 24, context=CONTEXT)
    more = set(block_sharding(crossed)) - set(block_sharding(plain))
    assert {pattern for pattern, _ in more} == {
        "blocks/cross/[qkv]/kernel",
        "blocks/cross/[qkv]/bias",
        "blocks/cross/proj/kernel",
    }
    assert "cross" not in nnx.to_pure_dict(nnx.state(blocks()))


@pytest.mark.parametrize("options", [{"scan": False}, {"remat": "full"}], ids=["loop", "remat"])
def test_one_context_is_shared_by_the_layers_of_a_stack(options):
    stack, x = blocks(context=CONTEXT), draw(2, 3, WIDTH)

    def loss(context, **options):
        beside = BESIDE._replace(context=context)
        return jnp.square(run_stack(stack, x, beside=beside, **options)[0]).sum()

    one, ours = jax.jit(jax.value_and_grad(loss))(BESIDE.context)
    other, theirs = jax.jit(jax.value_and_grad(lambda c: loss(c, **options)))(BESIDE.context)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # Padding of the context has no part in it; what is there has, through every layer.
    assert (np.asarray(ours)[~np.asarray(MASK)] == 0).all()
    assert (np.abs(np.asarray(ours)[np.asarray(MASK)]).max(axis=-1) > 0).all()


def test_padding_changes_nothing_for_the_other_tokens():
    stack, x = blocks(), draw(2, 5, WIDTH)
    run = jax.jit(lambda x: run_stack(stack, x, beside=Beside(mask=MASK))[0])
    changed = jnp.where(MASK[..., None], x, 1e3)
    np.testing.assert_allclose(run(x)[MASK], run(changed)[MASK], atol=1e-6)


def test_a_stack_goes_token_by_token_with_cached_keys():
    stack, x = blocks(causal=True, context=CONTEXT), draw(2, 4, WIDTH)
    one = Cache.empty(2, 6, 2, WIDTH // 2, FLOAT)
    caches = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEPTH), one)
    step, rows = jax.jit(lambda x, caches: step_stack(stack, x, caches, BESIDE)), []
    for at in range(4):
        row, caches = step(x[:, at : at + 1], caches)
        rows.append(row)
    whole = run_stack(stack, x, beside=BESIDE)[0]
    np.testing.assert_allclose(jnp.concatenate(rows, axis=1), whole, atol=1e-5)
