"""Clips -> one vector each, from the tokens of an encoder."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from internvideo_jax.inference.steps import Forward
from internvideo_jax.protocols import Model
from internvideo_jax.types import Params

# mean of the tokens, as the probes take it; head: the vector that enters the classifier's head.
POOLS = ("mean", "head")


def pooled(model: Model, pool: str) -> Forward:
    """(params, batch with video (B, T, H, W, 3) uint8) -> (B, D) float32.

    Args:
      pool: one of POOLS.

    Raises:
      ValueError: the model has no vector of that kind.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool}: expected one of {', '.join(POOLS)}")
    head = model.config.traits.classifier
    if pool == "head" and not (head and head.pooled):
        raise ValueError(
            f"pool=head: {type(model.config).__name__} has no pooling before a head; take a "
            "classifier's recipe, or pool=mean"
        )

    def forward(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        tokens = model.apply(params, batch["video"], method="features")
        if pool == "head":
            return model.apply(params, tokens, method="pool").astype(jnp.float32)
        return tokens.astype(jnp.float32).mean(axis=1)

    return forward
