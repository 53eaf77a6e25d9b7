"""Weights that are no numbers: NaN, or infinite as after an overflow in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SHOWN = 4


def broken(value: Any) -> int:
    """How many values of an array are NaN or infinite; 0 for whole numbers."""
    value = np.asarray(value)
    if value.dtype.kind in "biu":
        return 0
    # Layer by layer, so that the truth values of a stack take little memory.
    parts = value if value.ndim > 1 else [value]
    return sum(part.size - int(np.isfinite(part).sum()) for part in parts)


def describe(tensors: Mapping[str, Any], of: int) -> str:
    """`1 of 32 tensors are not finite (NaN or infinite values): x (3 of 64)`; empty if all are.

    Args:
      of: how many tensors there are.
    """
    counts = {name: count for name, value in tensors.items() if (count := broken(value))}
    if not counts:
        return ""
    shown = [f"{name} ({n:,} of {np.size(tensors[name]):,})" for name, n in counts.items()]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return (
        f"{len(counts)} of {of} tensors are not finite (NaN or infinite values): "
        f"{', '.join(shown[:SHOWN])}{more}"
    )
