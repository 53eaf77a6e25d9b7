"""Blocks put together: order of norms, cross-attention, masks, and what a stack shares."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from internvideo_jax.layers.attention import AttentionConfig, CrossAttentionConfig
from internvideo_jax.layers.block import Beside, BlockConfig, NormConfig, block_sharding
from internvideo_jax.layers.block_stack import layer, run_stack, stacked_blocks, step_stack
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.mlp import MLPConfig
from internvideo_jax.ops.attention import Cache
from internvideo_jax.parallel.rules import idle_rules
from internvideo_jax.types import flatten_paths

DEPTH, WIDTH, CONTEXT = 2, 16, 12
FLOAT = jnp.dtype("float32")


PLAIN = BlockConfig(WIDTH, AttentionConfig(2), MLPConfig(24))
CROSS = dataclasses.replace(PLAIN, cross=CrossAttentionConfig(CONTEXT, 2))
# A layer of a language model as Mistral: four heads of queries on two of keys, and no bias.
LANGUAGE = BlockConfig(
    WIDTH,
    AttentionConfig(4, 2, qkv_bias=False, proj_bias=False, causal=True, rotary=1e4),
    MLPConfig(24, "silu", gated=True, bias=False),
    norm=NormConfig("rms", eps=1e-5),
)


def blocks(config):
    return stacked_blocks(config, DEPTH, init=Init("xavier"), dtype=FLOAT, rngs=nnx.Rngs(params=0))


def arrays(module):
    return nnx.to_pure_dict(nnx.state(module))


def draw(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


MASK = jnp.asarray([[True] * 4 + [False], [True] * 3 + [False] * 2])
BESIDE = Beside(context=draw(2, 5, CONTEXT, seed=2), context_mask=MASK)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_block_is_its_parts_in_their_order(order):
    stack = blocks(dataclasses.replace(CROSS, norm=NormConfig(order=order)))
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
        NormConfig(order="after")
    with pytest.raises(ValueError, match="unknown norm 'batch'; known: layer, rms"):
        NormConfig("batch")
    with pytest.raises(ValueError, match="unknown activation 'gelv': did you mean 'gelu'"):
        MLPConfig(24, "gelv")
    with pytest.raises(ValueError, match="3 heads of keys do not divide 4 of queries"):
        AttentionConfig(4, 3)
    with pytest.raises(
        ValueError, match="literal attention has no kv_heads, causal, rotary or dropout"
    ):
        AttentionConfig(4, literal=True, causal=True)
    with pytest.raises(ValueError, match="width 16 is not divisible by 3 heads"):
        blocks(dataclasses.replace(PLAIN, attention=AttentionConfig(3)))


def test_parameters_of_cross_attention_are_sharded_and_others_have_none():
    more = set(block_sharding(CROSS)) - set(block_sharding(PLAIN))
    assert {pattern for pattern, _ in more} == {
        "blocks/cross/[qkv]/kernel",
        "blocks/cross/[qkv]/bias",
        "blocks/cross/proj/kernel",
    }
    assert "cross" not in arrays(blocks(PLAIN))


@pytest.mark.parametrize("options", [{"scan": False}, {"remat": "full"}], ids=["loop", "remat"])
def test_one_context_is_shared_by_the_layers_of_a_stack(options):
    stack, x = blocks(CROSS), draw(2, 3, WIDTH)

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
    stack, x = blocks(PLAIN), draw(2, 5, WIDTH)
    run = jax.jit(lambda x: run_stack(stack, x, beside=Beside(mask=MASK))[0])
    changed = jnp.where(MASK[..., None], x, 1e3)
    np.testing.assert_allclose(run(x)[MASK], run(changed)[MASK], atol=1e-6)


CAUSAL = dataclasses.replace(CROSS, attention=AttentionConfig(2, causal=True))


@pytest.mark.parametrize("config", [CAUSAL, LANGUAGE], ids=["cross", "language"])
def test_a_stack_goes_token_by_token_with_cached_keys(config):
    stack, x = blocks(config), draw(2, 4, WIDTH)
    attention = config.attention
    one = Cache.empty(2, 6, attention.key_heads, WIDTH // attention.heads, FLOAT)
    caches = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEPTH), one)
    step, rows = jax.jit(lambda x, caches: step_stack(stack, x, caches, BESIDE)), []
    for at in range(4):
        row, caches = step(x[:, at : at + 1], caches)
        rows.append(row)
    whole = run_stack(stack, x, beside=BESIDE)[0]
    np.testing.assert_allclose(jnp.concatenate(rows, axis=1), whole, atol=1e-5)


def test_a_layer_of_a_language_model_is_a_configuration():
    block, x = layer(blocks(LANGUAGE), 0), draw(2, 3, WIDTH)
    attn, mlp = block.attn, block.mlp

    def turned(x):  # (B, N, heads, 4): the pair (c, c + 2) as a complex number
        angles = jnp.arange(3)[:, None, None] * jnp.asarray([1.0, 1e-2])
        pairs = (x[..., :2] + 1j * x[..., 2:]) * jnp.exp(1j * angles)
        return jnp.concatenate([pairs.real, pairs.imag], axis=-1)

    def expected(x):
        y = block.norm1(x)
        q = turned((y @ attn.qkv.q_kernel[...]).reshape(2, 3, 4, 4))
        k, v = (y @ kernel for kernel in attn.qkv.kv_kernel[...])
        k = turned(k.reshape(2, 3, 2, 4))[:, :, [0, 0, 1, 1]]
        v = v.reshape(2, 3, 2, 4)[:, :, [0, 0, 1, 1]]
        logits = jnp.einsum("bnkc,bskc->bkns", q, k) / 2.0
        weights = jax.nn.softmax(jnp.where(jnp.tri(3, dtype=bool), logits, -jnp.inf))
        x = x + jnp.einsum("bkns,bskc->bnkc", weights, v).reshape(x.shape) @ attn.proj.kernel[...]
        y = block.norm2(x)
        gate = jax.nn.silu(y @ mlp.gate.kernel[...])
        return x + (gate * (y @ mlp.fc1.kernel[...])) @ mlp.fc2.kernel[...]

    found = jax.jit(jax.value_and_grad(lambda x: jnp.square(block(x)).sum()))(x)
    wanted = jax.jit(jax.value_and_grad(lambda x: jnp.square(expected(x)).sum()))(x)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)
    state = {"blocks": arrays(blocks(LANGUAGE))}
    assert not [path for path in flatten_paths(state) if path.endswith("bias")]
    assert not idle_rules(state, block_sharding(LANGUAGE))


def test_keys_of_fewer_heads_may_have_biases():
    config = dataclasses.replace(PLAIN, attention=AttentionConfig(4, 1, key_bias=True))
    shapes = {path: leaf.shape for path, leaf in arrays(blocks(config).attn.qkv).items()}
    assert shapes == {
        "q_kernel": (DEPTH, WIDTH, WIDTH),
        "kv_kernel": (DEPTH, 2, WIDTH, 4),
        "q_bias": (DEPTH, WIDTH),
        "k_bias": (DEPTH, 4),
        "v_bias": (DEPTH, 4),
    }
    block, x = layer(blocks(config), 0), draw(2, 3, WIDTH)
    # All queries have the same keys: a bias on them moves no weight. One on the values moves all.
    before = block(x)
    block.attn.qkv.k_bias[...] = jnp.ones(4)
    np.testing.assert_allclose(block(x), before, atol=1e-5)
    block.attn.qkv.v_bias[...] = jnp.ones(4)
    assert np.abs(block(x) - before).min() > 0


# A fused layer of BERT, as InternVideo2's stage 2 has them, with each of its dropouts alone.
FUSED = dataclasses.replace(
    CROSS, attention=AttentionConfig(2, key_bias=True), norm=NormConfig(order="post", eps=1e-12)
)


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(FUSED, dropout=0.5),
        dataclasses.replace(FUSED, attention=AttentionConfig(2, key_bias=True, dropout=0.5)),
        dataclasses.replace(FUSED, cross=CrossAttentionConfig(CONTEXT, 2, dropout=0.5)),
    ],
    ids=["added", "weights", "cross weights"],
)
def test_dropout_is_drawn_per_example_and_off_in_evaluation(config):
    stack, x = blocks(config), draw(2, 3, WIDTH)
    twice = jnp.concatenate([x, x])
    beside = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), BESIDE)
    run = jax.jit(lambda keys: run_stack(stack, twice, keys=keys, beside=beside)[0])
    drawn = run(jax.random.split(jax.random.key(3), 4))
    assert np.abs(drawn[:2] - drawn[2:]).max() > 1e-2
    np.testing.assert_array_equal(drawn, run(jax.random.split(jax.random.key(3), 4)))
    plain = run_stack(blocks(FUSED), twice, beside=beside)[0]
    np.testing.assert_allclose(run(None), plain, atol=1e-5)
