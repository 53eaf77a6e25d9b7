"""The linear layer of all networks; its kernel may have eight bits (ops/quantized.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from internvideo_jax.ops.quantized import Kernel


class Rounds:
    """A module that multiplies by kernels of eight bits where its parameters are such."""

    KERNELS: ClassVar[Sequence[str]] = ("kernel",)


class Linear(nnx.Linear, Rounds):
    """`nnx.Linear`; parameters, names and results are the same for float kernels."""

    def __init__(self, in_features: int, out_features: int, **options: Any):
        super().__init__(
            in_features, out_features, **options, promote_dtype=_promote, dot_general=_product
        )


def _promote(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Input, kernel and bias in the type of the layer; a kernel of eight bits keeps its own."""
    x, kernel, bias = arrays
    if not isinstance(kernel, Kernel):
        return promote_dtype(arrays, dtype=dtype, inexact=inexact)
    x, bias = promote_dtype((x, bias), dtype=dtype, inexact=inexact)
    return x, kernel, bias


def _product(x: jax.Array, kernel: Any, dimensions: Any, **options: Any) -> jax.Array:
    if isinstance(kernel, Kernel):
        return kernel.product(x)
    return jax.lax.dot_general(x, kernel, dimensions, **options)
