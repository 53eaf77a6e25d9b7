"""Learning rates as functions of the step.

Each works on numpy in float64 (tables, tests) and on traced jax values in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Step = int | float | np.ndarray | jax.Array
Schedule = Callable[[Step], Any]  # step -> value


def _numeric(step: Step) -> Any:
    return jnp if isinstance(step, jax.Array) else np


def cosine(base: float, final: float, total: int, warmup: int = 0, start: float = 0.0) -> Schedule:
    """Linear warm-up including both ends, then half a cosine that stops just short of `final`.

    The reference's rule: step 0 has the rate `start` (0 in every recipe), step warmup - 1 has
    `base`, step i after that final + (base - final) / 2 * (1 + cos(pi * i / (total - warmup))).
    """
    if warmup >= total > 0:
        raise ValueError(f"warm-up takes {warmup} of {total} steps; expected it to be shorter")

    def rate(step: Step) -> Any:
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

    def rate(epoch: Step) -> Any:
        xp = _numeric(epoch)
        ramp = start + (base - start) * epoch / max(warmup, 1e-9)
        decay = final + 0.5 * (base - final) * (
            1.0 + xp.cos(np.pi * (epoch - warmup) / (total - warmup))
        )
        return xp.where(epoch < warmup, ramp, decay)

    return rate


def floored_cosine(base: float, floor: float, total: int, warmup: int = 0) -> Schedule:
    """ViCLIP's rule: a linear warm-up and half a cosine to zero, neither ever below `floor`.

    Step s has base * s / warmup before step `warmup`, which is the first with `base`.
    """
    if warmup >= total > 0:
        raise ValueError(f"warm-up takes {warmup} of {total} steps; expected it to be shorter")

    def rate(step: Step) -> Any:
        xp = _numeric(step)
        done = xp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
        factor = xp.where(step < warmup, step / max(warmup, 1), 0.5 * (1.0 + xp.cos(np.pi * done)))
        return xp.maximum(base * factor, floor)

    return rate


def unshifted_cosine(base: float, total: int, warmup: float) -> Schedule:
    """BertAdam's warmup_cosine: the cosine counts from step 0, so the rate drops after warm-up.

    Args:
      warmup: steps; may be a fraction, the reference has a share of `total`.
    """
    if not 0 <= warmup < total:
        raise ValueError(f"warm-up takes {warmup} of {total} steps; expected it to be shorter")

    def rate(step: Step) -> Any:
        xp = _numeric(step)
        ramp = step / max(warmup, 1e-9)
        # Past the end it rises again, as in the reference.
        return base * xp.where(step < warmup, ramp, 0.5 * (1.0 + xp.cos(np.pi * step / total)))

    return rate


def make_schedule(
    kind: str, base: float, final: float, start: float, warmup: int, total: int
) -> Schedule:
    """The schedule `kind` over steps; ValueError for an unknown one."""
    if kind == "cosine":
        return cosine(base, final, total, warmup, start)
    if kind == "slowfast":
        return slowfast_cosine(base, final, start, warmup, total)
    if kind in ("floored", "unshifted"):
        if start:
            raise ValueError(
                f"config.optim.schedule {kind!r} warms up from 0, found a start of {start:g}"
            )
        if kind == "floored":
            return floored_cosine(base, final, total, warmup)
        if final:
            raise ValueError(f"config.optim.schedule {kind!r} ends at 0, found {final:g}")
        return unshifted_cosine(base, total, warmup)
    raise ValueError(
        f"unknown config.optim.schedule {kind!r}; known: cosine, slowfast, floored, unshifted"
    )
