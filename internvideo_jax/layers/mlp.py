"""The feed-forward half of a block."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.drop_path import dropout
from internvideo_jax.layers.init import Init
from internvideo_jax.ops.activations import gelu, gelu_tanh, quick_gelu, silu
from internvideo_jax.registry import suggest

ACTIVATIONS = {
    "gelu": gelu,  # exact
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": silu,
}


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Linear, activation, linear."""

    hidden: int  # units
    activation: str = "gelu"  # one of ACTIVATIONS
    gated: bool = False  # the activation of one map is the factor of another (Shazeer 2020)
    bias: bool = True

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}: {suggest(self.activation, ACTIVATIONS)}"
            )


class MLP(nnx.Module):
    """fc2(act(fc1(x))), or gated fc2(act(gate(x)) * fc1(x))."""

    def __init__(
        self, width: int, config: MLPConfig, *, init: Init, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.activation = config.activation
        hidden, bias = config.hidden, config.bias
        self.fc1 = init.layer(width, hidden, bias=bias, dtype=dtype, rngs=rngs)
        self.fc2 = init.layer(hidden, width, bias=bias, dtype=dtype, rngs=rngs)
        self.gate = (
            init.layer(width, hidden, bias=bias, dtype=dtype, rngs=rngs) if config.gated else None
        )

    def __call__(self, x: jax.Array, keys: jax.Array | None = None, rate: float = 0.0) -> jax.Array:
        """x: (B, N, D) -> (B, N, D); with keys (B,) hidden units are dropped with `rate`."""
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            hidden = activate(self.fc1(x))
        else:
            hidden = activate(self.gate(x)) * self.fc1(x)
        if keys is not None and rate > 0:
            hidden = dropout(hidden, keys, rate)
        return self.fc2(hidden)
