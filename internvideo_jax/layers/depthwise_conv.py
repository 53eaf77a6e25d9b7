"""Depthwise convolution over space and time."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.layers.init import torch_uniform


class DepthwiseConv(nnx.Module):
    """One odd-sized 3-D kernel per channel, zero padding that keeps the shape, and a bias."""

    def __init__(
        self, width: int, kernel: tuple[int, int, int], *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        fan_in = int(np.prod(kernel))
        self.kernel = nnx.Param(torch_uniform(rngs.params(), (*kernel, width), fan_in))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, T, H, W, D) -> the same shape in the compute dtype.

        On CPUs a sum of shifted copies: XLA's convolution with one group per channel takes many
        times as long there, forward and backward.
        """
        y = jax.lax.platform_dependent(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            cpu=shifted_sum,
            default=grouped_convolution,
        )
        return y + self.bias[...].astype(self.dtype)


def grouped_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (B, T, H, W, D), kernel (t, h, w, D) -> shape of `x`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, :, None],
        (1, 1, 1),
        "SAME",
        feature_group_count=kernel.shape[-1],
        dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )


def shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same, added up in float32."""
    size = kernel.shape[:3]
    padded = jnp.pad(x, [(0, 0), *((n // 2, n // 2) for n in size), (0, 0)])
    offsets = np.array(list(itertools.product(*map(range, size))), np.int32)

    @jax.checkpoint  # else the backward pass keeps one copy per offset
    def add(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        (t, h, w), weight = tap
        shifted = jax.lax.dynamic_slice(padded, (0, t, h, w, 0), x.shape)
        return total + shifted.astype(jnp.float32) * weight.astype(jnp.float32), None

    taps = (offsets, kernel.reshape(-1, kernel.shape[-1]))
    return jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), taps)[0].astype(x.dtype)
