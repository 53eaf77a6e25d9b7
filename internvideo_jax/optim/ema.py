"""Exponential moving average of the parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from internvideo_jax.types import Params


def update_ema(ema: Params, params: Params, decay: float, step: jax.Array) -> Params:
    """ema * d + params * (1 - d); d rises as (1 + step) / (10 + step) until it reaches `decay`.

    Without the ramp the average would carry the initial weights for 1 / (1 - decay) steps.
    """
    step = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old * rate + new * (1.0 - rate), ema, params)
