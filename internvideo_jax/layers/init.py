"""Initial weights of linear layers, by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.linear import Linear


class Draws(nnx.RngStream):
    """The keys of an `nnx.RngStream`, counted in Python.

    The stream of the library counts in an array, and to change an array under a trace costs more
    than all the rest of a layer's construction. No layer keeps a stream, so nobody misses it.
    """

    def __init__(self, key: jax.Array | int):
        super().__init__(key, tag="params")
        self._drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self._drawn)
        self._drawn += 1
        return key


def draws(key: jax.Array | int) -> nnx.Rngs:
    """`nnx.Rngs(params=key)`, which draws the same keys sooner."""
    rngs = nnx.Rngs()
    rngs.params = Draws(key)  # pyright: ignore[reportAttributeAccessIssue]
    return rngs


@dataclasses.dataclass(frozen=True)
class Init:
    """How linear weights start.

    `xavier`: uniform over the whole matrix, the pre-training rule of VideoMAE.
    `normal`: normal with standard deviation 0.02, the fine-tuning rule (the reference truncates at
    an absolute value of 2, a hundred standard deviations away).
    """

    kind: str = "xavier"
    # Matrices that end a residual branch of block i (from 0) are divided by sqrt(2 (i + 1)).
    by_depth: bool = False

    def linear(self, key: jax.Array, fan_in: int, fan_out: int) -> jax.Array:
        """(fan_in, fan_out) float32."""
        if self.kind == "xavier":
            limit = math.sqrt(6.0 / (fan_in + fan_out))
            return jax.random.uniform(key, (fan_in, fan_out), minval=-limit, maxval=limit)
        if self.kind == "normal":
            return 0.02 * jax.random.normal(key, (fan_in, fan_out))
        raise ValueError(f"unknown initialisation {self.kind!r}; known: xavier, normal")

    def layer(
        self,
        fan_in: int,
        fan_out: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        bias: bool = True,
        rounds: bool = True,
    ) -> nnx.Linear:
        """A linear layer with float32 parameters that computes in `dtype`; bias starts at 0.

        Args:
          rounds: whether its kernel may have eight bits; False where it is read as an array.
        """
        return (Linear if rounds else nnx.Linear)(
            fan_in,
            fan_out,
            use_bias=bias,
            dtype=dtype,
            rngs=rngs,
            kernel_init=lambda key, shape, _=None: self.linear(key, *shape),
        )

    def head(self, fan_in: int, classes: int, scale: float, *, rngs: nnx.Rngs) -> Linear:
        """A linear layer in float32 whose weights start `scale` times as large."""
        return Linear(
            fan_in,
            classes,
            rngs=rngs,
            kernel_init=lambda key, shape, _=None: scale * self.linear(key, *shape),
        )


def torch_layer(fan_in: int, fan_out: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> Linear:
    """A linear layer with the start of `torch_uniform`, weights and bias."""
    return Linear(
        fan_in,
        fan_out,
        dtype=dtype,
        rngs=rngs,
        kernel_init=lambda key, shape, _=None: torch_uniform(key, shape, fan_in),
        bias_init=lambda key, shape, _=None: torch_uniform(key, shape, fan_in),
    )


def torch_uniform(key: jax.Array, shape: Sequence[Any], fan_in: int) -> jax.Array:
    """Uniform in +-1/sqrt(fan_in): what torch gives a layer that nobody initialises."""
    limit = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)
