"""Attention without a stored matrix of weights, as a Pallas kernel for TPUs.

Dao et al. 2022 (FlashAttention), for what video towers need: no mask, no bias, a few thousand
tokens. Keys and values of one head stay on the chip while the queries pass by, so both directions
read every array once, and the backward pass is one kernel with five products instead of two with
seven.

Inside, arrays are (..., C, N): channels along sublanes, tokens along lanes. A head of 64 or 88
channels would fill half or two thirds of the 128 lanes, in memory and on the way; tokens fill them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from internvideo_jax.ops.blocked_attention import RESIDUALS

LANES = 128
KEY_CHUNK = 512  # keys whose logits exist at a time
QUERY_BLOCKS = (512, 256, 128)
# Keys, values, their gradients and the sums of these stay on the chip, next to one tile of logits.
# As many, with 128 channels, compile for v4, v5e, v5p and v6e.
MOST_KEYS = 4096


def flash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, interpret: bool = False
) -> jax.Array:
    """Softmax attention over all keys, on one device.

    Args:
      q: (B, N, K, C) queries.
      k: (B, S, K, C) keys, S at most MOST_KEYS.
      v: (B, S, K, C) values.
      scale: factor on the logits.
      interpret: run the kernel's operations one by one on any device: for tests, slow.

    Returns:
      (B, N, K, C) in the dtype of `v`. Logits and sums are float32.
    """
    queries, keys = q.shape[1], k.shape[1]
    block = query_block(queries)
    q = checkpoint_name(tokens_last(q * scale, block), RESIDUALS)
    k = checkpoint_name(tokens_last(k, LANES), RESIDUALS)
    v = checkpoint_name(tokens_last(v, LANES), RESIDUALS)
    out: jax.Array = _attend(q, k, v, keys, block, interpret)  # pyright: ignore[reportAssignmentType]
    return out[..., :queries].transpose(0, 3, 1, 2)


def query_block(queries: int) -> int:
    """Queries of one pass of the kernel: the largest block that pads at most a tenth more."""
    least = _rounded(queries, LANES)
    return next(size for size in QUERY_BLOCKS if _rounded(queries, size) <= 1.1 * least)


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step


def tokens_last(x: jax.Array, step: int) -> jax.Array:
    """(B, N, K, C) -> (B, K, C, N padded with zeros to a multiple of `step`)."""
    tokens = x.shape[1]
    x = x.transpose(0, 2, 3, 1)
    return jnp.pad(x, [(0, 0)] * 3 + [(0, _rounded(tokens, step) - tokens)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(q, k, v, keys: int, block: int, interpret: bool):
    return forward(q, k, v, keys, block, interpret)[0]


def _attend_forward(q, k, v, keys: int, block: int, interpret: bool):
    out, log_total = forward(q, k, v, keys, block, interpret)
    out, log_total = checkpoint_name(out, RESIDUALS), checkpoint_name(log_total, RESIDUALS)
    return out, (q, k, v, out, log_total)


def _attend_backward(keys: int, block: int, interpret: bool, residuals, gradient):
    q, k, v, out, log_total = residuals
    return backward(q, k, v, out, log_total, gradient, keys, block, interpret)


_attend.defvjp(_attend_forward, _attend_backward)


def forward(
    q, k, v, keys: int | jax.Array, block: int, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """(B, K, C, N) output and (B, K, 1, N) logarithm of the sum of exponentials.

    The keys behind the first `keys`, a number that the program may compute, are padding; where all
    are, the logarithm is the least float32.
    """
    batch, heads, channels, queries = q.shape
    passing, resident, row = _specs(channels, block, k.shape[-1])
    products = 2 * batch * heads * queries * k.shape[-1] * channels
    kernel, given, specs = _count(_forward_kernel, keys)
    return pl.pallas_call(
        kernel,
        grid=(batch, heads, queries // block),
        in_specs=[*specs, passing, resident, resident],
        out_specs=[passing, row],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products,
            transcendentals=batch * heads * queries * k.shape[-1],
            bytes_accessed=2 * q.nbytes + k.nbytes + v.nbytes,
        ),
        name="attention_forward",
        interpret=interpret,
    )(*given, q, k, v)


def backward(
    q, k, v, out, log_total, gradient, keys: int | jax.Array, block: int, interpret: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v, with `keys` as in `forward`.

    Output and logarithm may be of a softmax over more keys than these.
    """
    batch, heads, channels, queries = q.shape
    passing, resident, row = _specs(channels, block, k.shape[-1])
    products = 2 * batch * heads * queries * k.shape[-1] * channels
    kernel, given, specs = _count(_backward_kernel, keys)
    return tuple(
        pl.pallas_call(
            kernel,
            grid=(batch, heads, queries // block),
            in_specs=[*specs, passing, resident, resident, passing, row, passing],
            out_specs=[passing, resident, resident],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
            scratch_shapes=[pltpu.VMEM((channels, k.shape[-1]), jnp.float32)] * 2,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(
                flops=5 * products,
                transcendentals=batch * heads * queries * k.shape[-1],
                bytes_accessed=4 * q.nbytes + 2 * (k.nbytes + v.nbytes),
            ),
            name="attention_backward",
            interpret=interpret,
        )(*given, q, k, v, out, log_total, gradient)
    )


def _count(kernel: Any, keys: int | jax.Array) -> tuple[Any, list[jax.Array], list[pl.BlockSpec]]:
    """The kernel that knows how many keys there are, and what it is given first to know it."""
    if isinstance(keys, int):
        return functools.partial(kernel, keys=keys), [], []

    def counted(count_ref, *refs):
        kernel(*refs, keys=count_ref[0])

    return counted, [keys.reshape(1)], [pl.BlockSpec(memory_space=pltpu.SMEM)]


def _specs(channels: int, block: int, keys: int) -> tuple[pl.BlockSpec, ...]:
    """Blocks of arrays that go with the queries, that stay for a head, and of one row per query."""
    passing = pl.BlockSpec((None, None, channels, block), lambda b, h, i: (b, h, 0, i))
    resident = pl.BlockSpec((None, None, channels, keys), lambda b, h, i: (b, h, 0, 0))
    row = pl.BlockSpec((None, None, 1, block), lambda b, h, i: (b, h, 0, i))
    return passing, resident, row


def _chunks(padded: int) -> list[slice]:
    return [slice(i, min(i + KEY_CHUNK, padded)) for i in range(0, padded, KEY_CHUNK)]


def _product(left: jax.Array, right: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Matrix product over one axis of each, summed in float32."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _logits(k_ref, q: jax.Array, chunk: slice, keys: int | jax.Array) -> jax.Array:
    """(keys of the chunk, queries) float32; padded keys get a value that exp turns into 0."""
    logits = _product(k_ref[:, chunk], q, (0, 0))
    if isinstance(keys, int) and chunk.stop <= keys:
        return logits
    number = chunk.start + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    return jnp.where(number < keys, logits, jnp.finfo(jnp.float32).min)


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, log_total_ref, *, keys: int | jax.Array):
    q = q_ref[...]
    highest = jnp.full((1, q.shape[1]), -jnp.inf, jnp.float32)
    total, summed = jnp.zeros_like(highest), jnp.zeros(q.shape, jnp.float32)
    for chunk in _chunks(k_ref.shape[1]):
        logits = _logits(k_ref, q, chunk, keys)
        new = jnp.maximum(highest, logits.max(axis=0, keepdims=True))
        weights, shrink = jnp.exp(logits - new), jnp.exp(highest - new)
        total = total * shrink + weights.sum(axis=0, keepdims=True)
        v = v_ref[:, chunk]
        summed = summed * shrink + _product(v, weights.astype(v.dtype), (1, 0))
        highest = new
    out_ref[...] = (summed / total).astype(out_ref.dtype)
    log_total_ref[...] = highest + jnp.log(total)


def _backward_kernel(
    q_ref, k_ref, v_ref, out_ref, log_total_ref, gradient_ref, *results, keys: int | jax.Array
):
    dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = results

    @pl.when(pl.program_id(2) == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    q, gradient, log_total = q_ref[...], gradient_ref[...], log_total_ref[...]
    own = out_ref[...].astype(jnp.float32) * gradient.astype(jnp.float32)
    own = own.sum(axis=0, keepdims=True)
    dq = jnp.zeros(q.shape, jnp.float32)
    for chunk in _chunks(k_ref.shape[1]):
        weights = jnp.exp(_logits(k_ref, q, chunk, keys) - log_total)
        dv_sum[:, chunk] += _product(gradient, weights.astype(gradient.dtype), (1, 1))
        d_weights = _product(v_ref[:, chunk], gradient, (0, 0))
        d_logits = (weights * (d_weights - own)).astype(q.dtype)
        dk_sum[:, chunk] += _product(q, d_logits, (1, 1))
        dq = dq + _product(k_ref[:, chunk], d_logits, (1, 0))
    dq_ref[...] = dq.astype(dq_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        dk_ref[...] = dk_sum[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)
