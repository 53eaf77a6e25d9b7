"""Depthwise convolution over space and time."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.models.layers.init import torch_uniform


class DepthwiseConv(nnx.Module):
    """One odd-sized 3-D kernel per channel, zero padding that keeps the shape, and a bias.

    A sum over shifted copies: the compiler makes one loop of it, whereas a grouped convolution with
    as many groups as channels takes a slow path on CPUs, its gradient more so.
    """

    def __init__(
        self, width: int, kernel: tuple[int, int, int], *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        fan_in = int(np.prod(kernel))
        self.kernel = nnx.Param(torch_uniform(rngs.params(), (*kernel, width), fan_in))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, T, H, W, D) -> the same shape in the compute dtype; added up in float32."""
        kernel = self.kernel[...]
        size, shape = kernel.shape[:3], x.shape[1:4]
        padded = jnp.pad(x, [(0, 0), *((n // 2, n // 2) for n in size), (0, 0)])
        total = self.bias[...]
        for t, h, w in itertools.product(*map(range, size)):
            shifted = padded[:, t : t + shape[0], h : h + shape[1], w : w + shape[2]]
            total = total + shifted.astype(jnp.float32) * kernel[t, h, w]
        return total.astype(self.dtype)
