"""InternVideo2 beyond the golden cases: sizes, masks, starts, the pool, the student, bad input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from internvideo_jax.families.internvideo2.model import EncoderConfig
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.layers.attention import Attention, AttentionConfig
from internvideo_jax.layers.attention_pool import AttentionPool
from internvideo_jax.layers.block import BlockConfig, NormConfig
from internvideo_jax.layers.block_stack import run_stack, stacked_blocks
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.mlp import MLPConfig
from internvideo_jax.layers.pos_embed import halves_sincos
from internvideo_jax.layers.tower import last_layers, tower
from internvideo_jax.ops.activations import gelu_tanh
from internvideo_jax.ops.attention import attend
from internvideo_jax.parallel.rules import idle_rules, param_shardings, whole_parameters
from internvideo_jax.run.build import head_notes
from internvideo_jax.types import flatten_paths, unflatten_paths

KEY = jax.random.key(0)
SETTINGS = {
    "encoder": tower(32, 3, 4),
    "embedding": 12,
    "pool_heads": 2,
    "frames": 2,
    "resolution": 16,
    "patch": 8,
    "dtype": "float32",
}
SMALL = EncoderConfig(**SETTINGS)
STUDENT = StudentConfig(
    **SETTINGS, stride=2, clip_width=20, clip_layers=(0, 2), final_width=10, mae_width=14
)
VIDEO = jax.random.uniform(KEY, (2, 4, 16, 16, 3))
CLIP = VIDEO[:, ::2]
VISIBLE = jnp.array([[0, 3, 5], [1, 2, 7]], jnp.int32)


@functools.cache
def weights(config):
    """Every parameter drawn, so that no branch is scaled to nothing."""
    rng = np.random.default_rng(0)
    flat = {
        path: jnp.asarray(0.2 * rng.normal(size=leaf.shape) + path.endswith("scale"), jnp.float32)
        for path, leaf in sorted(flatten_paths(config.model().shapes()).items())
    }
    return unflatten_paths(flat)


@functools.cache
def compiled(config, method="__call__"):
    return jax.jit(functools.partial(config.model().apply, method=method))


def sizes(config) -> dict[str, int]:
    shapes = flatten_paths(config.model().shapes())
    return {path: int(np.prod(leaf.shape)) for path, leaf in shapes.items()}


@pytest.mark.parametrize(
    ("size", "encoder", "pool"),
    [
        ("small", 22_302_336, 741_504),
        ("base", 87_072_000, 2_366_976),
        ("large", 304_987_136, 3_942_144),
        ("1b", 1_013_666_432, 7_042_176),
        ("6b", 5_908_528_000, 33_207_168),
    ],
)
def test_published_parameter_counts(size, encoder, pool):
    counts = sizes(EncoderConfig.of_size(size))
    assert sum(n for path, n in counts.items() if path.startswith("encoder/")) == encoder
    assert sum(n for path, n in counts.items() if path.startswith("pool/")) == pool


@pytest.mark.parametrize(
    ("size", "changes", "total"),
    [
        ("1b", {"stride": 2, "mae_width": 1408}, 1_070_042_752),
        ("6b", {"stride": 2, "mae_width": 1408}, 6_075_947_392),
        ("small", {"clip_width": 1408, "clip_decoder": "mlp"}, 29_169_792),
        ("base", {"clip_width": 1408, "clip_decoder": "mlp"}, 102_252_288),
        ("large", {"clip_width": 1408, "clip_decoder": "mlp"}, 327_183_872),
    ],
)
def test_students_of_pre_training_and_distillation(size, changes, total):
    config = StudentConfig.of_size(size, **changes)
    assert sum(sizes(config).values()) == total
    assert config.clip_frames == 8 * config.stride


def test_sizes_are_those_of_the_paper():
    config = EncoderConfig.of_size("1b")
    assert config.encoder.hidden == 6144 and config.grid == (8, 16, 16) and config.tokens == 2048
    assert EncoderConfig.of_size("6b").encoder.heads == 25
    with pytest.raises(ValueError, match="unknown model size '2b'"):
        EncoderConfig.of_size("2b")


def test_aligned_layers():
    assert last_layers(40, 6, 3.34) == (23, 26, 29, 33, 36, 39)
    assert last_layers(48, 6) == (42, 43, 44, 45, 46, 47)
    with pytest.raises(ValueError, match="5 layers at intervals of 1.0 .* 0 to 3"):
        last_layers(4, 5)
    with pytest.raises(ValueError, match="intervals of 0.5"):
        last_layers(4, 2, 0.5)


@pytest.mark.parametrize("table", ["joint", "separable"])
def test_all_patches_visible_is_no_mask_and_hidden_ones_do_not_count(table):
    config = EncoderConfig(**{**SETTINGS, "pos_table": table})

    @jax.jit
    def tokens(params, video, visible=None):
        network = nnx.merge(config.model()._graph, params)
        return network.encoder(video, visible)[0]

    params, every = weights(config), jnp.tile(jnp.arange(8), (2, 1))
    whole = tokens(params, CLIP)
    assert whole.shape == (2, 9, 32)
    np.testing.assert_allclose(whole, tokens(params, CLIP, every), atol=1e-5)
    # Patch 6 of the second frame (rows of two) is hidden in both clips.
    painted = CLIP.at[:, 1, 8:, :8].set(0.0)
    seen = [tokens(params, video, VISIBLE) for video in (CLIP, painted)]
    np.testing.assert_array_equal(*seen)
    assert np.abs(tokens(params, painted) - whole).max() > 1e-3
    assert np.isnan(tokens(params, CLIP, VISIBLE.at[0, 2].set(8))[0]).any()


def test_drop_path_follows_the_keys_of_the_examples():
    config = StudentConfig(
        **SETTINGS, stride=2, clip_width=20, final_width=0, drop_path=0.9, clip_layers=(2,)
    )
    run, params = compiled(config), weights(config)
    keys = jax.random.split(KEY, 2)
    plain, dropped = run(params, VIDEO, VISIBLE), run(params, VIDEO, VISIBLE, keys)
    again = run(params, VIDEO[::-1], VISIBLE[::-1], keys[::-1])
    middle = "clip_middle"
    assert np.abs(plain[middle] - dropped[middle]).max() > 1e-2
    np.testing.assert_allclose(again[middle][:, ::-1], dropped[middle], atol=1e-5)


def test_initial_values():
    flat = flatten_paths(jax.jit(EncoderConfig.of_size("tiny", resolution=16).model().init)(KEY))
    for path in ("attn/proj", "mlp/fc2"):
        kernel = np.asarray(flat[f"encoder/blocks/{path}/kernel"])
        expected = [0.02 / np.sqrt(2 * (i + 1)) for i in range(4)]
        np.testing.assert_allclose(kernel.std(axis=(1, 2)), expected, rtol=0.05)
    qkv = np.asarray(flat["encoder/blocks/attn/qkv/kernel"])
    np.testing.assert_allclose(qkv.std(axis=(1, 2, 3)), 0.02, rtol=0.05)
    assert (flat["encoder/blocks/gamma1"] == np.float32(1e-5)).all()
    table = np.asarray(flat["encoder/pos_embed/table"])
    assert not table[0].any()
    patches = table[1:].reshape(8, 2, 2, 96)
    # A quarter for time, then three eighths for the column and three for the row.
    np.testing.assert_array_equal(patches[5, 1, 0, :24], halves_sincos(np.array([5]), 24)[0])
    one, zero = halves_sincos(np.array([1, 0]), 36)
    np.testing.assert_array_equal(patches[5, 0, 1, 24:], np.concatenate([one, zero]))
    assert {path for path in flat if path.endswith("bias") and np.any(flat[path])} == {
        "encoder/patch_embed/bias"
    }


def test_pool_is_attention_of_the_mean_token():
    pool = AttentionPool(
        32, 4, 12, init=Init("normal"), dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=0)
    )
    graph, state = nnx.split(pool)
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), state)
    pool, x = nnx.merge(graph, drawn), jnp.asarray(rng.normal(size=(2, 7, 32)), jnp.float32)

    @jax.jit
    def both(x):
        q = pool.q(pool.norm_q(x.mean(axis=1, keepdims=True)))
        k, v = pool.k(pool.norm_k(x)), pool.v(pool.norm_v(x))
        q, k, v = (part.reshape(2, -1, 4, 8) for part in (q, k, v))
        logits = jnp.einsum("bqkc,bnkc->bkn", q, k) * 8**-0.5
        expected = pool.proj(attend(q, k, v, form="xla").reshape(2, 32))
        return pool.with_attention(x), (expected, jax.nn.softmax(logits).mean(axis=1))

    for found, expected in zip(*both(x), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_literal_attention_mixes_heads_and_not_tokens():
    layer = Attention(
        8,
        AttentionConfig(2, literal=True),
        init=Init("xavier"),
        dtype=jnp.dtype("float32"),
        rngs=nnx.Rngs(params=0),
    )

    @jax.jit
    def both(x):
        q, k, v = (part.reshape(3, 2, 4) for part in layer.qkv(x))
        weights = jax.nn.softmax(jnp.einsum("nkc,njc->nkj", q, k) / 2.0)
        of_heads = jnp.einsum("nkj,njc->knc", weights, v)  # (heads, N, C), read as (N, heads, C)
        return layer(x), layer.proj(of_heads.reshape(1, 3, 8))

    np.testing.assert_allclose(*both(jax.random.normal(KEY, (1, 3, 8))), atol=1e-5)


def test_tanh_gelu_and_its_slope():
    x = jnp.linspace(-6, 6, 101)
    expected = functools.partial(jax.nn.gelu, approximate=True)
    np.testing.assert_allclose(gelu_tanh(x), expected(x), atol=1e-6)
    slopes = [jax.vmap(jax.grad(each))(x) for each in (gelu_tanh, expected)]
    np.testing.assert_allclose(*slopes, atol=5e-6)
    assert np.abs(expected(x) - jax.nn.gelu(x, approximate=False)).max() > 1e-4


@pytest.mark.slow
def test_intermediates_cost_memory_once_and_not_per_layer():
    attention, norm = AttentionConfig(2, qk_norm=True), NormConfig("rms")
    config = BlockConfig(32, attention, MLPConfig(64), norm=norm)
    blocks = stacked_blocks(
        config, 8, init=Init("normal"), dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=0)
    )
    graph, params = nnx.split(blocks)
    x = jnp.zeros((4, 16, 32))

    def temporary(layers):
        def loss(params):
            y, intermediates = run_stack(
                nnx.merge(graph, params), x, intermediate_layers=layers, remat="full"
            )
            return jnp.sum(y**2) + (
                0.0 if intermediates is None else jnp.sum(jnp.sin(intermediates))
            )

        memory = jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis()
        return memory.temp_size_in_bytes / x.nbytes

    # Three kept, one spare; their gradients lie where they did.
    assert temporary((4, 5, 7)) - temporary(()) < 2 * 4 + 1


def test_student_outputs_and_its_frames():
    found = compiled(STUDENT)(weights(STUDENT), VIDEO, VISIBLE)
    assert {name: value.shape for name, value in found.items()} == {
        "clip_middle": (2, 2, 4, 20),
        "clip_final": (2, 10),
        "mae": (3, 2, 3, 14),
    }
    for value in found.values():
        assert value.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(value, axis=-1), 1.0, atol=1e-5)
    taken = compiled(STUDENT)(weights(STUDENT), CLIP, VISIBLE)
    np.testing.assert_allclose(found["mae"], taken["mae"], atol=1e-5)
    features = compiled(STUDENT, "features")
    assert features(weights(STUDENT), VIDEO).shape == (2, 9, 32)
    with pytest.raises(ValueError, match=r"video is \(3, 16, 16, 3\).*\(2, 16, 16, 3\)"):
        features(weights(STUDENT), VIDEO[:, :3])


def test_a_student_without_heads_has_none_of_their_parameters():
    config = StudentConfig(**SETTINGS, clip_width=0, final_width=0)
    assert compiled(config)(weights(config), CLIP, VISIBLE) == {}
    assert {path.partition("/")[0] for path in sizes(config)} == {"encoder", "pool"}
    assert idle_rules(config.model().shapes(), config.sharding_rules) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_layers": (2, 1)}, "clip_layers = .2, 1.: expected ascending"),
        ({"mae_width": 8, "mae_layers": (3,)}, "mae_layers = .3,.: .* 0 to 2"),
        ({"mae_layers": (1,)}, "mae_layers = .1,. with mae_width = 0"),
        ({"clip_decoder": "conv"}, "clip_decoder = 'conv'; known: linear, mlp"),
        ({"stride": 0}, "stride = 0: expected 1"),
        ({"pos_table": "sincos"}, "pos_table = 'sincos': .*joint, separable"),
        ({"activation": "relu"}, "activation = 'relu'"),
        ({"pool_heads": 3}, "pool_heads = 3 does not divide the width 32"),
        ({"encoder": tower(24, 2, 2)}, "width 24 is no multiple of 16"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        StudentConfig(**{**SETTINGS, **changes})


def test_smallest_is_the_same_kind():
    config = StudentConfig.of_size("1b", stride=2, mae_width=1408, pos_table="separable").smallest()
    assert config.clip_layers == config.mae_layers == (0, 1)
    assert config.clip_width == 3200 and config.stride == 2 and config.grid == (4, 2, 2)
    assert config.pos_table == "separable" and config.model().shapes()["mae_pos_embed"]
    assert config.forward_flops(3) < config.forward_flops()


@pytest.mark.parametrize("size", ["1b", "6b"])
@pytest.mark.parametrize("table", ["joint", "separable"])
def test_rules_leave_nothing_large_whole(size, table):
    config = StudentConfig.of_size(size, mae_width=1408, pos_table=table)
    shapes = config.model().shapes()
    mesh = AbstractMesh((2, 8, 4), ("data", "fsdp", "tensor"))
    placed = param_shardings(shapes, config.sharding_rules, mesh, 2**14)
    assert idle_rules(shapes, config.sharding_rules) == []
    assert whole_parameters(shapes, placed, mesh, 2**18) == {}
    assert len(head_notes(config, 4)) == (size == "6b")  # 25 heads do not split over 4


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2 1 1", "1 2 1", "1 1 2"])
def test_values_do_not_depend_on_the_mesh(command, mesh):
    module = "tests.internvideo_jax.families.internvideo2_on_a_mesh"
    done = command(module, *mesh.split(), devices=2)
    assert done.returncode == 0, done.stderr[-3000:]
