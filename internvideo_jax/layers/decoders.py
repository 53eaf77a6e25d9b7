"""Decoders of aligned features: one per kept layer, from the student's width to a teacher's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import unit
from internvideo_jax.layers.block import layer_norm
from internvideo_jax.layers.init import Init
from internvideo_jax.ops.activations import gelu

KINDS = ("linear", "mlp")

# For the parameters of stacked decoders; the first axis are the layers.
DECODER_SHARDING = (
    (r"decoder/(head|fc1)/kernel", (..., "fsdp", "tensor")),
    (r"decoder/fc2/kernel", (..., "tensor", "fsdp")),
)


class FeatureDecoder(nnx.Module):
    """Linear map (`linear`), or two with an exact GELU between (`mlp`); LayerNorm; unit length.

    Unmasked Teacher and InternVideo2, stage 1. The hidden layer of `mlp` is as wide as its input.
    """

    def __init__(
        self,
        width: int,
        out: int,
        *,
        kind: str = "linear",
        eps: float,
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if kind not in KINDS:
            raise ValueError(f"unknown decoder {kind!r}; known: {', '.join(KINDS)}")
        mlp = kind == "mlp"
        self.head = None if mlp else init.layer(width, out, dtype=dtype, rngs=rngs)
        self.fc1 = init.layer(width, width, dtype=dtype, rngs=rngs) if mlp else None
        self.fc2 = init.layer(width, out, dtype=dtype, rngs=rngs) if mlp else None
        # float32: its output has length one and is compared with targets in float32.
        self.norm = layer_norm(out, dtype=jnp.dtype("float32"), rngs=rngs, eps=eps)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., C) float32 of length one."""
        if self.head is not None:
            x = self.head(x)
        elif self.fc1 is not None and self.fc2 is not None:
            x = self.fc2(gelu(self.fc1(x)))
        return unit(self.norm(x))


def decode(decoders: FeatureDecoder, x: jax.Array) -> jax.Array:
    """Each layer through its own decoder: (K, B, V, D) -> (K, B, V, C) float32 of length one."""
    graph, layers = nnx.split(decoders)
    return jax.vmap(lambda params, kept: nnx.merge(graph, params)(kept))(layers, x)


def decoder_flops(kind: str, width: int, out: int, tokens: int) -> float:
    """Multiply-adds of one decoder over `tokens` tokens, times two."""
    hidden = width * width if kind == "mlp" else 0
    return 2.0 * tokens * (hidden + width * out)
