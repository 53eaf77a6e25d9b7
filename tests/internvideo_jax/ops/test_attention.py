"""The forms of attention: which one is taken, and that the TPU kernel computes the same as XLA."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.compile_check import flops
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.ops import attention
from internvideo_jax.ops.attention import Choice, Site, attend, choose
from internvideo_jax.ops.blocked_attention import blocked_attention
from internvideo_jax.ops.flash_attention import MOST_KEYS, flash_attention, query_block

ENCODER = Site(160, 160, 12, 64, "bfloat16", batch=8)
DECODER = Site(1568, 1568, 6, 64, "bfloat16", batch=8)


def draw(queries: int, keys: int, heads: int, channels: int, batch: int = 1):
    shapes = [(batch, tokens, heads, channels) for tokens in (queries, keys, keys)]
    draws = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    return draws[0] * 2, draws[1], draws[2]


def values_and_gradients(function, *arguments):
    """Output and gradients of a loss in which every output has another weight."""

    @jax.jit
    def run(*arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))

    return run(*arguments)


@pytest.mark.parametrize(
    ("queries", "keys", "channels"),
    [
        pytest.param(160, 160, 64, id="padded"),
        pytest.param(128, 128, 64, id="whole-blocks", marks=pytest.mark.slow),
        pytest.param(196, 196, 88, id="channels-no-power-of-two", marks=pytest.mark.slow),
        pytest.param(130, 600, 16, id="another-number-of-keys-in-two-chunks"),
    ],
)
def test_the_kernel_equals_xla(queries, keys, channels):
    q, k, v = draw(queries, keys, 2, channels)
    out, gradients = values_and_gradients(lambda *a: attend(*a, form="flash"), q, k, v)
    expected, theirs = values_and_gradients(lambda *a: attend(*a, form="xla"), q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for ours, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(40, 40), (515, 60)], ids=["one", "padded-blocks"])
def test_blocks_equal_xla(queries, keys):
    q, k, v = draw(queries, keys, 2, 16, batch=2)
    out, gradients = values_and_gradients(lambda *a: attend(*a, form="blocked"), q, k, v)
    expected, theirs = values_and_gradients(lambda *a: attend(*a, form="xla"), q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for ours, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


def test_blocks_keep_bfloat16_and_survive_huge_logits():
    q, k, v = draw(300, 24, 1, 8)
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out, gradients = values_and_gradients(lambda *a: blocked_attention(*a, scale=1.0), *low)
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    exact = attention.xla_attention(q, k, v, scale=1.0)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.05)
    huge = blocked_attention(1e4 * q, k, v, scale=1.0)
    np.testing.assert_allclose(huge, attention.xla_attention(1e4 * q, k, v, scale=1.0), atol=1e-5)


def test_the_kernel_keeps_bfloat16_and_survives_huge_logits():
    q, k, v = draw(24, 24, 1, 8)
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out = flash_attention(*low, scale=1.0, interpret=True)
    assert out.dtype == jnp.bfloat16
    exact = attention.xla_attention(q, k, v, scale=1.0)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.05)
    huge = flash_attention(1e4 * q, k, v, scale=1.0, interpret=True)
    np.testing.assert_allclose(huge, attention.xla_attention(1e4 * q, k, v, scale=1.0), atol=1e-5)


def test_the_kernel_runs_on_the_part_of_each_device(command):
    done = command("tests.internvideo_jax.ops.attention_on_devices", devices=4, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("site", "platform", "form", "why"),
    [
        (DECODER, "cpu", "blocked", "on cpu"),
        (ENCODER, "cpu", "xla", "fewer than 512 tokens"),
        (DECODER, "rocm", "xla", "on rocm"),
        (dataclasses.replace(DECODER, causal=True), "tpu", "xla", "causal mask"),
        (dataclasses.replace(DECODER, causal=True), "cuda", "xla", "causal mask"),
        (DECODER, "tpu", "flash", "on tpu"),
        (ENCODER, "tpu", "xla", "fewer than 512 tokens"),
        (dataclasses.replace(DECODER, queries=1), "tpu", "xla", "fewer than 512"),
        (dataclasses.replace(DECODER, channels=88), "tpu", "flash", "on tpu"),
        (dataclasses.replace(DECODER, channels=160), "tpu", "xla", "160 channels"),
        (dataclasses.replace(DECODER, keys=MOST_KEYS + 1), "tpu", "xla", "4097 keys"),
        (dataclasses.replace(DECODER, shares=(3, 1)), "tpu", "xla", "batch 8 cannot"),
        (dataclasses.replace(DECODER, shares=(1, 4)), "tpu", "xla", "heads 6 cannot"),
        (DECODER, "cuda", "cudnn", "on cuda"),
        (ENCODER, "cuda", "cudnn", "on cuda"),
        (dataclasses.replace(DECODER, channels=128), "cuda", "cudnn", "on cuda"),
        (dataclasses.replace(DECODER, dtype="float32"), "cuda", "xla", "not float32"),
        (dataclasses.replace(DECODER, channels=20), "cuda", "xla", "20 channels"),
        (dataclasses.replace(DECODER, channels=136), "cuda", "xla", "136 channels"),
        (DECODER, "rocm", "xla", "on rocm"),
        (dataclasses.replace(DECODER, causal=True), "tpu", "xla", "causal mask"),
        (dataclasses.replace(DECODER, causal=True), "cuda", "xla", "causal mask"),
    ],
)
def test_the_choice(site, platform, form, why):
    found = choose(dataclasses.replace(site, platform=platform))
    assert found.form == form
    assert why in found.why


def test_a_form_that_was_asked_for_is_taken_or_refused():
    tpu = dataclasses.replace(ENCODER, platform="tpu")
    assert choose(tpu, "flash") == Choice("flash", "asked for")
    assert choose(dataclasses.replace(DECODER, platform="tpu"), "xla").form == "xla"
    with pytest.raises(ValueError, match="'cudnn' cannot compute 160 tokens.*NVIDIA GPUs, not tpu"):
        choose(tpu, "cudnn")
    with pytest.raises(ValueError, match="'flash' cannot compute .*for TPUs, not cuda"):
        choose(dataclasses.replace(ENCODER, platform="cuda"), "flash")
    with pytest.raises(ValueError, match=r"config.model.attention.*'flsh': did you mean 'flash'\?"):
        PretrainConfig.of_size("base", decoder_depth=4, attention="flsh")
    with pytest.raises(ValueError, match=r"config.model.remat.*'dot': did you mean 'dots'\?"):
        UniFormerV2Config.of_size("base", remat="dot")


def test_the_devices_of_the_mesh_decide_not_those_of_this_machine():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    types = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((2,), ("data",), types, abstract_device=device)
    shape = jax.ShapeDtypeStruct((4, 600, 2, 8), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh), attention.recording() as sites:
        jax.eval_shape(lambda x: attend(x, x, x, batch_axes=("data", "fsdp")), shape)
        jax.eval_shape(lambda x: attend(x[:, :9], x, x), shape)
    assert attention.summary(sites) == (
        "600 tokens, 2 heads of 8: flash (on tpu); 9 queries on 600 tokens, 2 heads of 8: xla "
        "(fewer than 512 tokens)"
    )
    (site, _), *_ = sites.items()
    assert (site.platform, site.shares) == ("tpu", (2, 1))


def test_query_blocks_pad_little():
    assert [query_block(n) for n in (1, 128, 160, 512, 1568, 2056)] == [
        128,
        128,
        256,
        512,
        256,
        256,
    ]


@pytest.mark.parametrize("form", ["xla", "flash"])
def test_the_attention_policy_saves_what_the_backward_pass_of_attention_reads(form):
    """Products that a recomputed layer executes less when attention was saved."""
    q, k, v = draw(128, 128, 1, 8)
    product = 2 * 128 * 128 * 8

    def products(policy):
        def layer(x):
            return jnp.tanh(attend(jnp.sin(x), k, v, form=form))

        kept = jax.checkpoint(layer, policy=policy)
        both = jax.make_jaxpr(jax.value_and_grad(lambda x: kept(x).sum()))(q)
        return flops.count(both).total / product

    names = jax.checkpoint_policies.save_only_these_names("attention")
    # xla needs the weights anew in any case, and their sum with the values for its division.
    again = {"xla": 0, "flash": 2}[form]
    full = products(jax.checkpoint_policies.nothing_saveable)
    assert full - products(names) == pytest.approx(again, abs=0.01)


def test_causal_attention_is_that_of_each_beginning():
    q, k, v = draw(6, 6, 2, 8)
    out, gradients = values_and_gradients(lambda *a: attend(*a, causal=True), q, k, v)

    def one_by_one(q, k, v):
        rows = [attend(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1]) for i in range(6)]
        return jnp.concatenate(rows, axis=1)

    expected, theirs = values_and_gradients(one_by_one, q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for ours, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


def test_causal_attention_is_refused_where_there_is_none():
    q, k, v = draw(6, 6, 2, 8)
    for form in ("flash", "blocked", "cudnn"):
        with pytest.raises(ValueError, match="6 tokens, 2 heads of 8, causal: only the form xla"):
            attend(q, k, v, causal=True, form=form)
    with pytest.raises(ValueError, match="causal attention of 5 queries on 6 keys"):
        attend(q[:, :5], k, v, causal=True)


def plain(q, k, v, mask=None, bias=None, causal=False):
    """Softmax, then product; a query that sees nothing gets zeros."""
    logits = jnp.einsum("bnkc,bskc->bkns", q, k) * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias
    seen = jnp.ones(logits.shape, bool) if mask is None else mask[:, None, None]
    seen = seen & jnp.tri(*logits.shape[2:], dtype=bool) if causal else seen
    highest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(logits - highest), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bkns,bskc->bnkc", weights / jnp.where(total > 0, total, 1.0), v)


MASK = jnp.asarray([[True] * 7 + [False] * 2, [False, True] * 4 + [True]])
BIAS = jnp.asarray(np.random.default_rng(3).normal(size=(1, 2, 9, 9)), jnp.float32)
WANTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"mask": MASK},
    "all-hidden": {"mask": MASK.at[0].set(False)},
    "biased": {"bias": BIAS},
    "hidden-by-bias": {"bias": BIAS.at[:, :, :, 4:].set(-jnp.inf)},
    "causal": {"causal": True},
    "masked-biased-causal": {"mask": MASK.at[1, 0].set(True), "bias": BIAS, "causal": True},
}
NEEDS = {"mask": "masked", "bias": "biased", "causal": "causal"}


@pytest.mark.parametrize("form", ["xla", "blocked", "flash"])
@pytest.mark.parametrize("wanted", WANTED)
def test_a_form_computes_what_it_says_it_can_or_refuses(wanted, form):
    given = WANTED[wanted]
    lacking = [
        what
        for name in given
        for what, forms in (attention.ABILITIES[NEEDS[name]],)
        if form not in forms
    ]
    q, k, v = draw(9, 9, 2, 8, batch=2)
    if lacking:
        with pytest.raises(ValueError, match=f"'{form}' cannot .*({'|'.join(lacking)})"):
            attend(q, k, v, **given, form=form)
        return
    out, gradients = values_and_gradients(lambda *a: attend(*a, **given, form=form), q, k, v)
    expected, theirs = values_and_gradients(lambda *a: plain(*a, **given), q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for ours, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


@pytest.mark.parametrize("form", ["xla", "blocked"])
def test_queries_of_another_sequence_leave_out_its_padding(form):
    q, k, v = draw(5, 9, 2, 8, batch=2)
    out, gradients = values_and_gradients(lambda *a: attend(*a, MASK, form=form), q, k, v)
    expected, theirs = values_and_gradients(lambda *a: plain(*a, MASK), q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for ours, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)
    with pytest.raises(ValueError, match=r"the mask is \(2, 5\), expected one value per key"):
        attend(q, k, v, MASK[:, :5])


def test_the_gradient_of_a_bias():
    q, k, v = draw(9, 9, 2, 8, batch=2)
    _, (ours,) = values_and_gradients(lambda bias: attend(q, k, v, bias=bias), BIAS)
    _, (theirs,) = values_and_gradients(lambda bias: plain(q, k, v, bias=bias), BIAS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_token_by_token_with_cached_keys_is_the_whole_at_once():
    q, k, v = draw(6, 6, 2, 8, batch=2)
    mask = jnp.ones((2, 8), bool).at[1, 0].set(False)
    cache = attention.Cache.empty(2, 8, 2, 8, jnp.float32)
    rows = []
    for part in (slice(0, 3), slice(3, 4), slice(4, 6)):
        out, cache = attend(q[:, part], k[:, part], v[:, part], mask, cache=cache, causal=True)
        rows.append(out)
    assert int(cache.length) == 6
    expected = plain(q, k, v, mask[:, :6], causal=True)
    np.testing.assert_allclose(jnp.concatenate(rows, axis=1), expected, atol=1e-5)
    with pytest.raises(ValueError, match="cached: only the form xla has cached keys"):
        attend(q[:, :2], k[:, :2], v[:, :2], cache=cache, form="blocked")


def test_what_a_form_lacks_is_the_reason_for_another():
    site = dataclasses.replace(DECODER, platform="tpu", masked=True)
    assert choose(site) == Choice("xla", "only the forms xla and blocked have a padding mask")
    assert choose(dataclasses.replace(site, platform="cpu")) == Choice("blocked", "on cpu")
    biased = dataclasses.replace(DECODER, platform="cuda", biased=True)
    assert choose(biased) == Choice("xla", "only the form xla has an additive bias")
