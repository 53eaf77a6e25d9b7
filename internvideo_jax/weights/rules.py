"""A small language for renaming and reshaping weights, in both directions.

A `Rule` pairs a torch name with one of our paths. `{i}` in the torch name is a layer number; its
tensors are stacked on a leading axis. Rules with a `part` share a path: their tensors are slices of
its first axis, behind that of the layers. A `Layout` says how one tensor is rearranged. Values are
only moved, never computed, so going back returns the original bits.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from internvideo_jax.registry import suggest

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is rearranged. `shape` is the geometry that the way back needs.

    `torch` is the shape that it has in a file, -1 for any size of an axis; None: any shape.
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray, Mapping[str, int]], np.ndarray]
    torch: tuple[int, ...] | None = None

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can be one of the layout."""
        if self.torch is None:
            return True
        return len(shape) == len(self.torch) and all(
            wanted in (-1, found) for wanted, found in zip(self.torch, shape, strict=True)
        )


SAME = Layout(lambda x: x, lambda x, _: x)
# Linear: torch keeps (out, in).
LINEAR = Layout(lambda x: x.T, lambda x, _: x.T, (-1, -1))
# Fused query, key, value: (3 * out, in) -> (3, in, out).
QKV = Layout(
    lambda x: x.reshape(3, -1, x.shape[1]).transpose(0, 2, 1),
    lambda x, _: x.transpose(0, 2, 1).reshape(-1, x.shape[1]),
    (-1, -1),
)
# (1, 1, D) -> (D,)
TOKEN = Layout(lambda x: x.reshape(-1), lambda x, _: x.reshape(1, 1, -1))
# (1, N, D) -> (N, D)
TABLE = Layout(lambda x: x[0], lambda x, _: x[None], (1, -1, -1))
# One value per head: (K, 1, 1) -> (K,)
PER_HEAD = Layout(lambda x: x.reshape(-1), lambda x, _: x.reshape(-1, 1, 1))


def _tubelet_to_torch(x: np.ndarray, shape: Mapping[str, int]) -> np.ndarray:
    kernel = x.reshape(shape["tubelet"], shape["patch"], shape["patch"], 3, x.shape[1])
    return kernel.transpose(4, 3, 0, 1, 2)


# 3-D convolution over tubelets (D, 3, t, p, p) -> matmul kernel (t * p * p * 3, D).
TUBELET = Layout(
    lambda x: x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]),
    _tubelet_to_torch,
    (-1, 3, -1, -1, -1),
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A name in torch, `{i}` for the layer, and where its values are here."""

    torch: str  # `encoder.blocks.{i}.attn.qkv.weight`
    path: str  # `encoder/blocks/attn/qkv/kernel`
    layout: Layout = SAME
    part: int | None = None  # of the path, where several tensors make it up

    def match(self, name: str) -> int | None:
        """Layer number (0 without `{i}`) if `name` belongs to this rule, else None."""
        if not self.stacked:
            return 0 if name == self.torch else None
        found = _pattern(self.torch).fullmatch(name)
        return int(found.group(1)) if found else None

    @property
    def stacked(self) -> bool:
        """Whether it is of every layer of a stack."""
        return "{i}" in self.torch


def linear(torch: str, path: str, layout: Layout = LINEAR) -> tuple[Rule, Rule]:
    """Kernel and bias of a layer called `torch` in a file."""
    kernel = Rule(f"{torch}.weight", f"{path}/kernel", layout)
    return kernel, Rule(f"{torch}.bias", f"{path}/bias")


def norm(torch: str, path: str) -> tuple[Rule, Rule]:
    """Scale and bias of a norm called `torch` in a file."""
    return Rule(f"{torch}.weight", f"{path}/scale"), Rule(f"{torch}.bias", f"{path}/bias")


@functools.cache
def _pattern(torch: str) -> re.Pattern[str]:
    """Of the torch names of a rule; a group for the layer number."""
    return re.compile(re.escape(torch).replace(r"\{i\}", r"(\d+)"))


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What became of every tensor of a file."""

    consumed: Mapping[str, str]  # torch name -> our path
    ignored: Mapping[str, str]  # torch name -> reason

    def text(self) -> str:
        """Lines about it."""
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
    layers: dict[tuple[str, int | None], dict[int, np.ndarray]] = {}
    chosen: dict[str, list[Rule]] = {}
    consumed: dict[str, str] = {}
    left_out: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        hit = next(((rule, i) for rule in rules if (i := rule.match(name)) is not None), None)
        if hit is not None:
            rule, index = hit
            found = layers.setdefault((rule.path, rule.part), {})
            if index in found:
                twin = next(n for n, path in consumed.items() if path == rule.path)
                raise ValueError(f"{name!r} and {twin!r} are two spellings of one parameter")
            found[index] = tensor
            if rule not in (known := chosen.setdefault(rule.path, [])):
                known.append(rule)
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
    for path, used in chosen.items():
        if used[0].part is None:
            ours[path] = _stacked(used[0], layers[path, None])
            continue
        parts = {rule.part: rule for rule in used}
        expected = {rule.part: rule for rule in rules if rule.path == path}
        absent = next((rule for part, rule in expected.items() if part not in parts), None)
        if absent is not None:
            raise ValueError(f"{absent.torch} is missing; {path} is made of it and others")
        pieces = [_stacked(parts[part], layers[path, part]) for part in expected]  # in their order
        if len({piece.shape for piece in pieces}) > 1:
            raise ValueError(f"the tensors of {path} differ in shape or number of layers")
        ours[path] = np.stack(pieces, axis=1 if used[0].stacked else 0)
    return ours, Coverage(consumed, left_out)


def _stacked(rule: Rule, found: Mapping[int, np.ndarray]) -> np.ndarray:
    """The tensor of a rule, or those of all layers on a leading axis."""
    if not rule.stacked:
        # numpy's ascontiguousarray would make a vector of a single number
        return np.asarray(_rearranged(rule, 0, found[0]), order="C")
    missing = next((i for i in range(len(found)) if i not in found), None)
    if missing is not None:
        some = ", ".join(map(str, sorted(found)[:8]))
        raise ValueError(
            f"{rule.torch}: layer {missing} is missing, found [{some}]; the file is incomplete"
        )
    layers = [_rearranged(rule, i, found[i]) for i in range(len(found))]
    if other := next((i for i, each in enumerate(layers) if each.shape != layers[0].shape), 0):
        raise ValueError(
            f"{rule.torch}: layer 0 has shape {found[0].shape}, layer {other} {found[other].shape};"
            " the layers of one stack are alike"
        )
    return np.stack(layers)


def _rearranged(rule: Rule, layer: int, tensor: np.ndarray) -> np.ndarray:
    try:
        if rule.layout.fits(tensor.shape):
            return rule.layout.to_ours(tensor)
    except (ValueError, IndexError):
        pass
    name = rule.torch.replace("{i}", str(layer))
    raise ValueError(f"{name} has shape {tensor.shape}, which fits no {rule.path}")


def check_complete(
    params: Mapping[str, np.ndarray], rules: Sequence[Rule], optional: Sequence[str]
) -> None:
    """Checks that converted parameters are those of a whole model.

    Args:
      optional: regular expressions on our paths. What one of them matches is there as a whole or
        not at all; the first that matches a path counts. All other paths must be there.

    Raises:
      ValueError: a parameter is missing, or stacks of one tower differ in their number of layers.
    """
    groups: dict[str, list[str]] = {}
    for path in dict.fromkeys(rule.path for rule in rules):
        pattern = next((each for each in optional if re.fullmatch(each, path)), "")
        groups.setdefault(pattern, []).append(path)
    for pattern, paths in groups.items():
        missing = [path for path in paths if path not in params]
        if missing and not (pattern and len(missing) == len(paths)):
            names = [rule.torch for rule in rules if rule.path == missing[0]]
            raise ValueError(
                f"{len(missing)} of {len(paths)} parameters are missing, first "
                f"{names[0]} ({missing[0]}); the file is incomplete: download it again, or save "
                "the whole model"
            )
    depths: dict[str, dict[int, str]] = {}
    for path in dict.fromkeys(rule.path for rule in rules if rule.stacked):
        if path in params:
            tower = path.partition("blocks/")[0]
            depths.setdefault(tower, {}).setdefault(len(params[path]), path)
    for counts in depths.values():
        if len(counts) > 1:
            most, least = max(counts), min(counts)
            raise ValueError(
                f"{counts[least]} has {least} layers and {counts[most]} {most}; the file is "
                "incomplete: download it again, or save the whole model"
            )


def to_torch(
    params: Mapping[str, np.ndarray], rules: Sequence[Rule], shape: Mapping[str, int]
) -> Tensors:
    """Inverse of `to_ours`: flat paths -> torch names, original layouts.

    Args:
      shape: `patch`, and `tubelet` where there is one, which a matmul kernel does not tell.

    Raises:
      ValueError: a path that no rule knows.
    """
    by_path: dict[str, dict[int | None, Rule]] = {}
    for rule in rules:  # of two spellings the first is written
        by_path.setdefault(rule.path, {}).setdefault(rule.part, rule)
    tensors = {}
    for path, value in params.items():
        if path not in by_path:
            raise ValueError(f"parameter {path!r} has no torch name: {suggest(path, by_path)}")
        for part, rule in by_path[path].items():
            stack = np.asarray(value) if rule.stacked else np.asarray(value)[None]
            for i, layer in enumerate(stack):
                name = rule.torch.replace("{i}", str(i))
                tensor = rule.layout.to_torch(layer if part is None else layer[part], shape)
                # numpy makes a vector of a single number here
                tensors[name] = np.ascontiguousarray(tensor).reshape(np.shape(tensor))
    return tensors
