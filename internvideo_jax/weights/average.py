"""The mean of two models' weights (Wortsman et al. 2022, WiSE-FT).

Between a ViCLIP and the CLIP that it started from, in equal parts, it keeps more of CLIP's
recognition without training; most published results of ViCLIP were measured so.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.records.outputs import local_argument
from internvideo_jax.weights import files
from internvideo_jax.weights.family import kinds
from internvideo_jax.weights.rules import Tensors


@dataclasses.dataclass(frozen=True)
class Average:
    """The mean of two models, and what was taken from where."""

    weights: files.Weights
    averaged: tuple[str, ...]
    kept: tuple[str, ...]  # the first model's, by name or because the second has none
    unused: tuple[str, ...]  # of the second model only

    def text(self) -> str:
        """Lines about it."""
        lines = [f"averaged {len(self.averaged)} parameters"]
        for title, paths in (("first model's own", self.kept), ("left out", self.unused)):
            if paths:
                lines.append(f"  {title}: {len(paths)}: {', '.join(paths)}")
        return "\n".join(lines)


def average(first: files.Weights, second: files.Weights, weight: float = 0.5) -> Average:
    """weight * first + (1 - weight) * second, computed in float32, in the dtypes of `first`.

    The second model may be a file that the first can be made from (`Kind.starts`: of a ViCLIP a
    CLIP, whose text positions are cut to the first's length). What it lacks stays the first's, and
    so does what `Kind.kept` says (the table of frames).

    Args:
      weight: share of the first model, 0 to 1.

    Raises:
      ValueError: a weight outside 0 to 1, models of two kinds that have nothing to do with each
        other, or of two shapes.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"a weight of {weight} is no share of the first model; expected 0 to 1")
    kind = kinds().get(first.kind)
    starts = kind.starts if kind is not None else {}
    if second.kind != first.kind and second.kind not in starts:
        raise ValueError(
            f"the first model is {first.kind}, the second {second.kind}; expected "
            + " or ".join(["two of one kind", *(f"{name} as the second" for name in starts)])
        )
    if dict(first.geometry) != dict(second.geometry):
        raise ValueError(
            f"the first model has {dict(first.geometry)}, the second {dict(second.geometry)}; only "
            "weights of one shape have a mean"
        )
    other = dict(second.params)
    if second.kind != first.kind:
        other = starts[second.kind](dict(first.params), other)
    own = kind.kept if kind is not None else ()
    common = [path for path in first.params if path in other and path not in own]
    differing = [
        f"  {path}: {first.params[path].shape} and {other[path].shape}"
        for path in common
        if first.params[path].shape != other[path].shape
    ]
    if differing or not common:
        raise ValueError(
            "only weights of one shape have a mean; "
            + ("\n".join(["different are", *differing[:5]]) if differing else "no name is in both")
        )
    mean: Tensors = dict(first.params)
    for path in common:
        one, two = (np.asarray(x[path], np.float32) for x in (first.params, other))
        mixed = np.float32(weight) * one + np.float32(1.0 - weight) * two
        mean[path] = np.asarray(mixed, first.params[path].dtype)
    weights = files.Weights(first.kind, mean, first.geometry)
    kept = tuple(path for path in first.params if path not in common)
    unused = tuple(path for path in other if path not in first.params)
    return Average(weights, tuple(common), kept, unused)


def add_command(commands: argparse._SubParsersAction) -> None:
    """`average` among the commands of `ivj weights`."""
    one = commands.add_parser(
        "average", help="mean of two models -> safetensors with our names (WiSE-FT)"
    )
    one.add_argument("source", help="run, checkpoint, file or name")
    one.add_argument("second", help="the same, or the CLIP file that it started from")
    one.add_argument("--out", type=local_argument, required=True)
    one.add_argument("--weight", type=float, default=0.5, help="share of the first model")


def run(options: argparse.Namespace, read: Callable[[Path], files.Weights]) -> None:
    """The command: reads both, a run or checkpoint folder or a file each, and writes the mean."""
    result = average(read(options.source), read(options.second), options.weight)
    print(result.text())
    files.save_ours(options.out, result.weights)
    print(f"written to {options.out}")
