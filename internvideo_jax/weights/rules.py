"""A small language for renaming and reshaping weights, in both directions.

A `Rule` pairs a torch name with one of our paths. `{i}` in the torch name is a layer number; its
tensors are stacked on a leading axis. A `Layout` says how one tensor is rearranged. Values are only
moved, never computed, so going back returns the original bits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from internvideo_jax.registry import suggest

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is rearranged. `shape` is the geometry that the way back needs."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray, Mapping[str, int]], np.ndarray]


SAME = Layout(lambda x: x, lambda x, _: x)
# Linear: torch keeps (out, in).
LINEAR = Layout(lambda x: x.T, lambda x, _: x.T)
# Fused query, key, value: (3 * out, in) -> (3, in, out).
QKV = Layout(
    lambda x: x.reshape(3, -1, x.shape[1]).transpose(0, 2, 1),
    lambda x, _: x.transpose(0, 2, 1).reshape(-1, x.shape[1]),
)
# (1, 1, D) -> (D,)
TOKEN = Layout(lambda x: x.reshape(-1), lambda x, _: x.reshape(1, 1, -1))
# (1, N, D) -> (N, D)
TABLE = Layout(lambda x: x[0], lambda x, _: x[None])
# One value per head: (K, 1, 1) -> (K,)
PER_HEAD = Layout(lambda x: x.reshape(-1), lambda x, _: x.reshape(-1, 1, 1))


def _tubelet_to_torch(x: np.ndarray, shape: Mapping[str, int]) -> np.ndarray:
    kernel = x.reshape(shape["tubelet"], shape["patch"], shape["patch"], 3, x.shape[1])
    return kernel.transpose(4, 3, 0, 1, 2)


# 3-D convolution over tubelets (D, 3, t, p, p) -> matmul kernel (t * p * p * 3, D).
TUBELET = Layout(lambda x: x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]), _tubelet_to_torch)


@dataclasses.dataclass(frozen=True)
class Rule:
    torch: str  # `encoder.blocks.{i}.attn.qkv.weight`
    path: str  # `encoder/blocks/attn/qkv/kernel`
    layout: Layout = SAME

    def match(self, name: str) -> int | None:
        """Layer number (0 without `{i}`) if `name` belongs to this rule, else None."""
        pattern = re.escape(self.torch).replace(r"\{i\}", r"(\d+)")
        found = re.fullmatch(pattern, name)
        if found is None:
            return None
        return int(found.group(1)) if found.groups() else 0

    @property
    def stacked(self) -> bool:
        return "{i}" in self.torch


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What became of every tensor of a file."""

    consumed: Mapping[str, str]  # torch name -> our path
    ignored: Mapping[str, str]  # torch name -> reason

    def text(self) -> str:
        lines = [f"{len(self.consumed)} tensors converted, {len(self.ignored)} ignored on purpose"]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            lines.append(
                f"  {reason}: {', '.join(sorted(names)[:4])}"
                f"{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
            )
        return "\n".join(lines)


def to_ours(
    tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], ignored: Mapping[str, str]
) -> tuple[Tensors, Coverage]:
    """Converts torch tensors to our flat paths.

    Args:
      ignored: regular expression on torch names -> reason why it is left out on purpose.

    Raises:
      ValueError: a tensor that no rule knows, or a gap in the layer numbers.
    """
    layers: dict[str, dict[int, np.ndarray]] = {}
    chosen: dict[str, Rule] = {}
    consumed: dict[str, str] = {}
    left_out: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        hit = next(((rule, i) for rule in rules if (i := rule.match(name)) is not None), None)
        if hit is not None:
            rule, index = hit
            layers.setdefault(rule.path, {})[index] = tensor
            chosen[rule.path] = rule
            consumed[name] = rule.path
            continue
        reason = next((why for pat, why in ignored.items() if re.fullmatch(pat, name)), None)
        if reason is None:
            unknown.append(name)
        else:
            left_out[name] = reason
    if unknown:
        known = [rule.torch.replace("{i}", "0") for rule in rules]
        raise ValueError(
            f"{len(unknown)} tensors of the file are not known, first {unknown[0]!r} "
            f"{tensors[unknown[0]].shape}: {suggest(unknown[0], known)}. Nothing was converted; "
            "add a rule or name the tensor as ignored"
        )
    ours = {}
    for path, found in layers.items():
        rule = chosen[path]
        if not rule.stacked:
            # numpy's ascontiguousarray would make a vector of a single number
            ours[path] = np.asarray(rule.layout.to_ours(found[0]), order="C")
            continue
        missing = set(range(max(found) + 1)) - set(found)
        if missing:
            raise ValueError(
                f"{rule.torch}: layer {min(missing)} is missing, found {sorted(found)}; "
                "the file is incomplete"
            )
        stack = [rule.layout.to_ours(found[i]) for i in range(len(found))]
        ours[path] = np.stack(stack)
    return ours, Coverage(consumed, left_out)


def to_torch(
    params: Mapping[str, np.ndarray], rules: Sequence[Rule], shape: Mapping[str, int]
) -> Tensors:
    """Inverse of `to_ours`: flat paths -> torch names, original layouts.

    Args:
      shape: `patch`, and `tubelet` where there is one, which a matmul kernel does not tell.

    Raises:
      ValueError: a path that no rule knows.
    """
    by_path = {rule.path: rule for rule in rules}
    tensors = {}
    for path, value in params.items():
        if path not in by_path:
            raise ValueError(f"parameter {path!r} has no torch name: {suggest(path, by_path)}")
        rule = by_path[path]
        value = np.asarray(value)
        for i in range(len(value) if rule.stacked else 1):
            layer = value[i] if rule.stacked else value
            name = rule.torch.replace("{i}", str(i))
            tensor = rule.layout.to_torch(layer, shape)
            # numpy makes a vector of a single number here
            tensors[name] = np.ascontiguousarray(tensor).reshape(np.shape(tensor))
    return tensors
