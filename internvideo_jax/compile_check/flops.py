"""FLOPs of a traced function: what it executes, loops and recomputation counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

Equation = Any  # jax's, of arrays


@dataclasses.dataclass
class Flops:
    """Multiply-adds times two of matrix products and convolutions, over all devices."""

    total: float = 0.0
    int8: float = 0.0  # of these, products of two operands of int8
    fp8: float = 0.0  # or of float8
    unknown_loops: int = 0  # while loops with matrix products, counted as one pass


def count(jaxpr: Jaxpr | ClosedJaxpr) -> Flops:
    """FLOPs of a (closed) jaxpr.

    The body of a scan counts `length` times and a kernel as often as its grid has points; the
    compiler's own figure counts both once. Of a conditional the dearest branch counts. Work other
    than matrix products is left out, as in the analytic figures (`forward_flops`), and so is what
    the compiler drops: a kernel whose results nothing reads, where they were saved, and what a pass
    of a scan computes for nobody, such as all but the counts of `parallel/microbatch.py`.
    """
    found = Flops()
    found.total, found.int8, found.fp8 = map(float, _count(_open(jaxpr), found))
    return found


def _count(jaxpr: Jaxpr, found: Flops) -> np.ndarray:
    """All, those of int8, and of float8."""
    total = np.zeros(3)
    unread = _unread(jaxpr)
    for number, equation in enumerate(jaxpr.eqns):
        if number in unread:
            continue
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total[0] += _convolution(equation)
        elif name == "cond":
            branches = (_count(branch.jaxpr, found) for branch in params["branches"])
            total += max(branches, key=lambda each: each[0])
        elif name == "scan":
            body = _open(params["jaxpr"])
            read, _ = dce_jaxpr(body, [True] * len(body.outvars))
            total += _count(read, found) * params["length"]
        else:
            inner = sum((_count(sub, found) for sub in _inner(params)), np.zeros(3))
            if name == "while" and inner[0]:
                found.unknown_loops += 1
            total += inner * _times(name, params)
    return total


def _unread(jaxpr: Jaxpr) -> set[int]:
    """Numbers of the kernels whose results nothing reads; jax itself never drops a kernel."""
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    read |= {id(variable) for variable in jaxpr.outvars}
    return {
        number
        for number, equation in enumerate(jaxpr.eqns)
        if equation.primitive.name == "pallas_call"
        and not equation.effects
        and not any(id(variable) in read for variable in equation.outvars)
    }


def _times(name: str, params: Mapping[str, Any]) -> float:
    """How often the inner jaxprs of an equation run, over all devices."""
    if name == "pallas_call":
        return float(np.prod(params["grid_mapping"].grid, dtype=float))
    if name == "shard_map":  # shapes inside are those of one device
        mesh = params["mesh"]
        manual = params.get("manual_axes", mesh.axis_names)
        return float(np.prod([mesh.shape[axis] for axis in manual], dtype=float))
    return 1.0


def _inner(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                yield _open(item)


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _dot(equation: Equation) -> np.ndarray:
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    (contract, right_contract), (_, right_batch) = equation.params["dimension_numbers"]
    used = {*right_contract, *right_batch}
    free = [size for axis, size in enumerate(right) if axis not in used]
    del contract  # the left shape holds batch, free and contracted dimensions
    flops = 2.0 * float(np.prod(left, dtype=float)) * float(np.prod(free, dtype=float))
    kinds = {variable.aval.dtype.name for variable in equation.invars[:2]}
    eight = kinds == {"int8"}, all(kind.startswith("float8") for kind in kinds)
    return flops * np.array([1.0, *eight])


def _convolution(equation: Equation) -> float:
    kernel = equation.invars[1].aval.shape
    outputs = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = np.prod(kernel, dtype=float) / kernel[outputs]
    return 2.0 * float(np.prod(equation.outvars[0].aval.shape, dtype=float) * per_output)
