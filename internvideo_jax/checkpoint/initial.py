"""Starting a run from other weights: which parameters come from where."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from internvideo_jax.checkpoint.manager import FOLDER
from internvideo_jax.ops.resize import resize_table
from internvideo_jax.types import Params, flatten_paths, unflatten_paths
from internvideo_jax.weights import files

TABLES = ("pos_embed",)  # leaves that may be resized to another token grid


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every parameter on both sides."""

    source: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    skipped: tuple[str, ...]  # in the source only
    fresh: tuple[str, ...]  # in the model only: keep their initial values

    def text(self) -> str:
        lines = [f"initial weights from {self.source}"]
        for title, paths in (
            ("loaded", self.loaded),
            ("resized", self.resized),
            ("skipped (not in this model)", self.skipped),
            ("fresh (not in the file)", self.fresh),
        ):
            if paths:
                lines.append(f"  {title}: {len(paths)}: {', '.join(_folded(paths))}")
        return "\n".join(lines)


def _folded(paths: tuple[str, ...]) -> list[str]:
    """Paths grouped by their first two parts, to keep the report to a few lines."""
    groups: dict[str, int] = {}
    for path in paths:
        head = "/".join(path.split("/")[:2])
        groups[head] = groups.get(head, 0) + 1
    return [f"{head} ({count})" if count > 1 else head for head, count in groups.items()]


def load_params(path: str) -> dict[str, np.ndarray]:
    """Flat parameters from a run, one of its checkpoints, or a weight file.

    A run means its newest checkpoint. Averaged parameters (EMA) are taken when the run kept them.

    Raises:
      ValueError: there is nothing to load at `path`.
    """
    place = Path(path)
    if place.is_file():
        return dict(files.load(place).params)
    return flatten_paths(read_checkpoint(checkpoint_step(place)))


def checkpoint_step(path: str | Path) -> Path:
    """The step directory meant by `path`: itself, or the newest step of a run."""
    place = Path(path).absolute()
    if (place / "state").is_dir():
        return place
    folder = place if place.name == FOLDER else place / FOLDER
    steps = (
        [int(step.name) for step in folder.iterdir() if step.name.isdigit()]
        if folder.is_dir()
        else []
    )
    if not steps:
        raise ValueError(
            f"{place}: no checkpoint here; expected a run directory with {FOLDER}/, one of its "
            "steps, or a .safetensors / .pth file"
        )
    return folder / str(max(steps))


def read_checkpoint(step: Path, averaged: bool = True) -> Params:
    """Parameters of a step as numpy arrays, the averaged ones when wanted and present."""
    reader = ocp.PyTreeCheckpointer()
    tree: Any = reader.metadata(step / "state").item_metadata
    tree = tree.tree
    name = "ema" if averaged and tree.get("ema") is not None else "params"
    wanted = {name: unflatten_paths(dict.fromkeys(flatten_paths(tree[name]), 0))}
    restored = reader.restore(
        step / "state",
        args=ocp.args.PyTreeRestore(
            item=wanted,  # pyright: ignore[reportCallIssue]
            restore_args=unflatten_paths(  # pyright: ignore[reportCallIssue]
                dict.fromkeys(flatten_paths(wanted), ocp.RestoreArgs(restore_type=np.ndarray))
            ),
            partial_restore=True,  # pyright: ignore[reportCallIssue]
        ),
    )
    return restored[name]


def checkpoint_weights(path: str | Path) -> files.Weights:
    """Parameters of a run or checkpoint with what the weight tools need to know about them."""
    step = checkpoint_step(path)
    model = json.loads((step / "meta" / "metadata").read_text())["config"]["model"]
    return files.Weights(
        kind=model["name"],
        params=flatten_paths(read_checkpoint(step)),
        geometry={name: model[name] for name in ("tubelet", "patch") if name in model},
    )


def initialise(
    path: str, fresh: Params, config: Any, source_grid: tuple[int, int, int] | None = None
) -> tuple[Params, LoadReport]:
    """Fresh parameters with everything replaced that the source has under the same path.

    Position tables of another grid are resized (bicubic in space, linear in time). A head with
    another number of classes is left fresh; any other difference of shape is an error.

    Args:
      path: run, checkpoint or weight file.
      fresh: initial parameters of the model, host or device arrays.
      config: the model's config; gives the token grid.
      source_grid: grid of the source's position table; by default that of the model with as many
        tokens in time as fit.

    Raises:
      ValueError: nothing matches, or a shape differs that must not.
    """
    source = load_params(path)
    changed: set[str] = set()
    if hasattr(config, "adapt_weights"):  # what a model can make of weights of another kind
        found, source = source, config.adapt_weights(source)
        changed = {name for name in found if source[name].shape != found[name].shape}
    target = flatten_paths(fresh)
    values: dict[str, Any] = dict(target)
    loaded, resized, other = [], [], []
    for name, leaf in target.items():
        if name not in source:
            continue
        value = source[name]
        if value.shape == leaf.shape:
            values[name] = value.astype(leaf.dtype)
            (resized if name in changed else loaded).append(name)
        elif name.rsplit("/", 1)[-1] in TABLES:
            grid = source_grid or _guess_grid(value.shape[0], config.grid)
            values[name] = resize_table(value, grid, config.grid).astype(leaf.dtype)
            resized.append(name)
        elif not name.startswith("head/"):
            other.append(f"  {name}: found {value.shape}, expected {leaf.shape}")
    if other:
        raise ValueError(
            f"{path} does not fit this model:\n"
            + "\n".join(other[:5])
            + "\nUse the size, patch and tubelet that the weights were made with"
        )
    if not loaded:
        raise ValueError(
            f"{path} shares no parameter with this model; it has {', '.join(list(source)[:3])}, "
            f"the model has {', '.join(list(target)[:3])}"
        )
    matched = {*loaded, *resized}
    report = LoadReport(
        path,
        tuple(loaded),
        tuple(resized),
        tuple(name for name in source if name not in matched),
        tuple(name for name in target if name not in matched),
    )
    return unflatten_paths(values), report


def _guess_grid(rows: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """The grid of a table with `rows` rows: same length in time if that leaves a square."""
    for time in (grid[0], *range(1, rows + 1)):
        side = round((rows / time) ** 0.5)
        if time * side * side == rows:
            return time, side, side
    raise ValueError(f"a position table of {rows} rows fits no square grid")
