"""Learning rates as functions of the step.

Each works on numpy in float64 (tables, tests) and on traced jax values in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Schedule = Callable[[Any], Any]  # step -> value


def _numeric(step: Any) -> Any:
    return jnp if isinstance(step, jax.Array) else np


def cosine(base: float, final: float, total: int, warmup: int = 0, start: float = 0.0) -> Schedule:
    """Linear warm-up including both ends, then half a cosine that stops just short of `final`.

    The reference's rule: step 0 has the rate `start` (0 in every recipe), step warmup - 1 has
    `base`, step i after that final + (base - final) / 2 * (1 + cos(pi * i / (total - warmup))).
    """
    if warmup >= total > 0:
        raise ValueError(f"warm-up takes {warmup} of {total} steps; expected it to be shorter")

    def rate(step: Any) -> Any:
        xp = _numeric(step)
        ramp = start + (base - start) * step / max(warmup - 1, 1)
        # Past the end the rate stays where it is.
        done = xp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
        decay = final + 0.5 * (base - final) * (1.0 + xp.cos(np.pi * done))
        return xp.where(step < warmup, ramp, decay)

    return rate


def slowfast_cosine(
    base: float, final: float, start: float, warmup: float, total: float
) -> Schedule:
    """UniFormerV2's policy over fractional epochs: linear from `start`, cosine after warm-up.

    With warm-up and length in steps it is a function of the step.
    """
    if warmup >= total > 0:
        raise ValueError(f"warm-up takes {warmup} of {total} steps; expected it to be shorter")

    def rate(epoch: Any) -> Any:
        xp = _numeric(epoch)
        ramp = start + (base - start) * epoch / max(warmup, 1e-9)
        decay = final + 0.5 * (base - final) * (
            1.0 + xp.cos(np.pi * (epoch - warmup) / (total - warmup))
        )
        return xp.where(epoch < warmup, ramp, decay)

    return rate


def floored_cosine(base: float, floor: float, total: int, warmup: int = 0) -> Schedule:
    """ViCLIP's policy: linear warm-up from zero, half a cosine to zero, neither below `floor`.

    Step s of the warm-up has base * s / warmup, step s after it half base * (1 + cos(pi * (s -
    warmup) / (total - warmup))).
    """
    if warmup >= total > 0:
        raise ValueError(f"warm-up takes {warmup} of {total} steps; expected it to be shorter")

    def rate(step: Any) -> Any:
        xp = _numeric(step)
        done = (step - warmup) / max(total - warmup, 1)
        decay = 0.5 * base * (1.0 + xp.cos(np.pi * done))
        return xp.maximum(floor, xp.where(step < warmup, base * step / max(warmup, 1), decay))

    return rate


def make_schedule(
    kind: str, base: float, final: float, start: float, warmup: int, total: int
) -> Schedule:
    """The schedule `kind` over steps; ValueError for an unknown one."""
    if kind == "cosine":
        return cosine(base, final, total, warmup, start)
    if kind == "slowfast":
        return slowfast_cosine(base, final, start, warmup, total)
    if kind == "floored":
        return floored_cosine(base, final, total, warmup)
    raise ValueError(f"unknown config.optim.schedule {kind!r}; known: cosine, slowfast, floored")
