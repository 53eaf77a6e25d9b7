"""Exponential moving average of the parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from internvideo_jax.types import Params


def update_ema(
    ema: Params, params: Params, decay: float, step: jax.Array, *, ramp: bool = True
) -> Params:
    """ema * d + params * (1 - d) after the update of a step.

    With the ramp d = min(decay, (1 + step) / (10 + step)): 0.1, 0.18, 0.25 ... up to `decay`, which
    0.9999 reaches after 89 990 steps. The average begins at the initial weights, and without the
    ramp it carries them along for about 1 / (1 - decay) steps. The references' own (timm's
    ModelEma, VideoMAE, InternVideo2) has no ramp: d = decay from the first step on.

    Args:
      step: number of updates before this one.
    """
    rate: float | jax.Array = decay
    if ramp:
        step = step.astype(jnp.float32)
        rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old * rate + new * (1.0 - rate), ema, params)
