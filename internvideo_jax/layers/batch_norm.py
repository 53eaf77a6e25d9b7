"""Batch normalisation that hands back its running statistics instead of changing itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

EPS = 1e-5
MOMENTUM = 0.1


class BatchNorm(nnx.Module):
    """Normalises every channel over all other axes, with float32 statistics.

    In training the batch covers all devices, unlike the reference, whose statistics are those of
    one GPU: what a run computes then does not depend on how many devices it has. The running
    variance takes the unbiased variance of the batch, as torch does.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, eps: float = EPS, affine: bool = True):
        """`affine`: with a learnt scale and bias."""
        self.scale = nnx.Param(jnp.ones(width)) if affine else None
        self.bias = nnx.Param(jnp.zeros(width)) if affine else None
        self.eps = eps
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.dtype = dtype

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """x: (..., D) -> the same shape, and {"mean", "var"} (D,) to go on with in training."""
        x = x.astype(jnp.float32)
        mean, var, running = self.mean[...], self.var[...], {}
        if train:
            axes = tuple(range(x.ndim - 1))
            count = x.size // x.shape[-1]
            batch_mean = x.mean(axis=axes)
            batch_var = jnp.square(x - batch_mean).mean(axis=axes)
            unbiased = batch_var * (count / max(count - 1, 1))
            running = jax.lax.stop_gradient(
                {
                    "mean": mean + MOMENTUM * (batch_mean - mean),
                    "var": var + MOMENTUM * (unbiased - var),
                }
            )
            mean, var = batch_mean, batch_var
        scale = jax.lax.rsqrt(var + self.eps)
        if self.scale is None or self.bias is None:
            return ((x - mean) * scale).astype(self.dtype), running
        scale = self.scale[...] * scale
        return ((x - mean) * scale + self.bias[...]).astype(self.dtype), running
