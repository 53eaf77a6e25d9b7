"""Activations of the MLPs, which keep one array for the backward pass: their derivative.

What autodiff would keep of an exact GELU is four arrays of the hidden size, the largest ones of a
layer, and it would compute the exponential twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]

ROOT_HALF = math.sqrt(0.5)
NORMALISER = 1.0 / math.sqrt(2.0 * math.pi)
ROOT_TWO_OVER_PI = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # As torch computes it: with erf, whose error is absolute, not relative, in the left tail.
    below = 0.5 + 0.5 * jax.lax.erf(x * ROOT_HALF)
    return x * below, below + x * NORMALISER * jnp.exp(-0.5 * jnp.square(x))


def _gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    square = jnp.square(x)
    bent = jnp.tanh(ROOT_TWO_OVER_PI * x * (1.0 + CUBIC * square))
    below = 0.5 + 0.5 * bent
    inner = ROOT_TWO_OVER_PI * (1.0 + 3.0 * CUBIC * square)
    return x * below, below + 0.5 * x * (1.0 - jnp.square(bent)) * inner


def _swish(factor: float, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    below = jax.nn.sigmoid(factor * x)
    return x * below, below * (1.0 + factor * x * (1.0 - below))


def _keeping_slope(both: Callable[[jax.Array], tuple[jax.Array, jax.Array]]) -> Activation:
    """The activation whose value and derivative `both` computes in float32."""

    @jax.custom_vjp
    def activation(x: jax.Array) -> jax.Array:
        return both(x.astype(jnp.float32))[0].astype(x.dtype)

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, slope = both(x.astype(jnp.float32))
        return value.astype(x.dtype), slope.astype(x.dtype)

    def backward(slope: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
        return (gradient * slope,)

    activation.defvjp(forward, backward)
    return activation


gelu = _keeping_slope(_gelu)  # exact: x times the normal distribution function
gelu_tanh = _keeping_slope(_gelu_tanh)  # the usual approximation, 5e-4 off at most
quick_gelu = _keeping_slope(functools.partial(_swish, 1.702))  # CLIP's: x * sigmoid(1.702 x)
silu = _keeping_slope(functools.partial(_swish, 1.0))  # x * sigmoid(x)
