"""Starting a run from other weights: which parameters come from where."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvideo_jax.checkpoint.classes import HEAD, HeadRows, head_rows, some
from internvideo_jax.checkpoint.fit import differing_fields, settings_of
from internvideo_jax.checkpoint.reading import DamagedStep, Step, step_of
from internvideo_jax.config import TrainConfig, current
from internvideo_jax.ops.position_tables import resize_patches
from internvideo_jax.parallel.multihost import to_host
from internvideo_jax.protocols import ClipInput, ModelConfig, Traits, clip_of
from internvideo_jax.types import (
    Leaf,
    Params,
    flatten_paths,
    unflatten_paths,
)
from internvideo_jax.weights import files, finite, folders
from internvideo_jax.weights.named import origin, resolve

TABLES = ("pos_embed",)  # leaves that may be resized to another token grid


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every parameter on both sides."""

    source: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    skipped: tuple[str, ...]  # in the source only
    fresh: tuple[str, ...]  # in the model only: keep their initial values
    head: HeadRows | None = None  # which rows a classifier's head was given, where both have one

    def text(self) -> str:
        """What became of every weight, a line a group."""
        lines = [f"initial weights from {self.source}"]
        if self.head is not None:
            lines.append(f"  head: {self.head.note}")
        for title, paths in (
            ("loaded", self.loaded),
            ("resized", self.resized),
            ("skipped (not in this model)", self.skipped),
            ("fresh (not in the file)", self.fresh),
        ):
            if paths:
                lines.append(f"  {title}: {len(paths)}: {', '.join(_folded(paths))}")
        return "\n".join(lines)

    def require(self, patterns: Sequence[str]) -> None:
        """ValueError where a pattern (of config.init_whole) fits a fresh parameter, or none."""
        paths = (*self.loaded, *self.resized, *self.fresh)
        for pattern in patterns:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(f"config.init_whole: {pattern!r} fits no parameter of the model")
            fresh = [path for path in self.fresh if re.search(pattern, path)]
            if fresh:
                raise ValueError(
                    f"{self.source} lacks {len(fresh)} parameters that config.init_whole = "
                    f"{pattern!r} demands, first {fresh[0]}; start from a run of the earlier stage"
                )

    def require_all(self) -> None:
        """ValueError unless every parameter and every class of the head came from the source."""
        if self.head is not None and self.head.absent and not self.head.fresh:
            raise ValueError(
                f"{self.source} has no row in its head for {len(self.head.absent)} classes of the "
                f"data: {some(self.head.absent)}; it cannot tell them"
            )
        if self.fresh:
            raise ValueError(
                f"{self.source} lacks {len(self.fresh)} parameters of the model, first "
                f"{self.fresh[0]}; expected a checkpoint of this model"
                + (f". Its head: {self.head.note}" if self.head is not None else "")
            )


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Parameters to start from."""

    params: dict[str, np.ndarray]  # by path
    stated: Mapping[str, Any]  # fields of config.model that are known
    classes: tuple[str, ...] = ()  # names of the classes of its head; empty: not known


def _folded(paths: tuple[str, ...]) -> list[str]:
    """Paths grouped by their first two parts, to keep the report to a few lines."""
    groups: dict[str, int] = {}
    for path in paths:
        head = "/".join(path.split("/")[:2])
        groups[head] = groups.get(head, 0) + 1
    return [f"{head} ({count})" if count > 1 else head for head, count in groups.items()]


def load_params(path: str) -> dict[str, np.ndarray]:
    """Flat parameters from a run, one of its checkpoints, or a weight file or its name.

    A run means its newest checkpoint. Averaged parameters (EMA) are taken when the run kept them.

    Raises:
      ValueError: there is nothing to load at `path`.
    """
    return load_source(path).params


def check_source(path: str) -> None:
    """ValueError unless there is a weight file or a checkpoint at `path`; nothing is loaded.

    What `path` names (weights/named.py) is fetched.
    """
    place = resolve(path)
    if not folders.is_weights(place):
        step_of(place)


def load_source(path: str) -> InitialWeights:
    """As `load_params`, with what is known about the model and its classes."""
    place = resolve(path)
    if folders.is_weights(place):
        return of_file(files.load(place))
    try:
        step = step_of(place)
        params = step.parameters()
    except DamagedStep as error:
        if place == Path(path):
            raise
        # Of a copy; what it was copied from is what the user knows.
        text = f"{origin(path)} is damaged ({error.what}); give another step of that run"
        raise DamagedStep(text, error.what) from error.__cause__
    return InitialWeights(
        params, _config_of(step).get("model", {}), tuple(step.meta.get("classes", ()))
    )


def of_file(weights: files.Weights) -> InitialWeights:
    """What `load_source` gives of a weight file that has been read."""
    said = weights.stated
    return InitialWeights(dict(weights.params), {**said.settings, **weights.geometry}, said.classes)


def model_of(step: Step) -> Mapping[str, Any]:
    """config.model of the run that a step belongs to; ValueError where that does not say it."""
    model = _config_of(step).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        raise ValueError(f"{step.path}: its metadata do not say what model it is of")
    return model


def _config_of(step: Step) -> Mapping[str, Any]:
    return current(TrainConfig, step.meta.get("config", {}))


def checkpoint_weights(path: str | Path) -> files.Weights:
    """Parameters of a run or checkpoint with what the weight tools need to know about them."""
    step = step_of(path)
    model = model_of(step)
    return files.Weights(
        kind=model["name"],
        params=step.parameters(),
        geometry={name: model[name] for name in ("tubelet", "patch") if name in model},
    )


@np.errstate(over="ignore")  # of casts: what becomes infinite is refused
def initialise(
    path: str,
    fresh: Params,
    config: ModelConfig,
    *,
    rows: str = "",
    classes: Sequence[str] = (),
    source: InitialWeights | None = None,
) -> tuple[Params, LoadReport]:
    """Fresh parameters with everything replaced that the source has under the same path.

    Learnable position tables of another grid are resized (bicubic in space, linear in time; of
    files, which do not say their number of frames, in space only). Fixed ones are no parameters:
    the model builds them for its own grid. Of a head for other classes the rows are taken that
    `rows` says; any other difference of shape is an error.

    Args:
      path: run, checkpoint or weight file.
      fresh: initial parameters of the model, host or device arrays, or only their shapes; then what
        is fresh stays a shape.
      config: the model's config; gives the token grid.
      rows: config.head_rows, see checkpoint/classes.py.
      classes: names of the classes of the data, in the order of the labels; empty: not known.
      source: what `load_source` gave for `path`, where that was read before.

    Raises:
      ValueError: nothing matches, a shape differs that must not, or the classes do.
    """
    source, target = source or load_source(path), flatten_paths(fresh)
    try:
        adapted = _adapt(source, config)
        head = _head(source, target, rows, classes)
        matched = _match(adapted, target, config.inputs.clip, head)
    except _Unfit as error:
        raise ValueError(f"{path} does not fit this model: {error}") from error
    _check(path, adapted, matched, target, config)
    taken = {*matched.loaded, *matched.resized}
    report = LoadReport(
        path,
        tuple(matched.loaded),
        tuple(matched.resized),
        tuple(name for name in adapted.params if name not in taken),
        tuple(name for name in target if name not in taken),
        head,
    )
    return unflatten_paths(matched.values), report


class _Unfit(ValueError):
    """Weights that the model makes nothing of."""


@dataclasses.dataclass(frozen=True)
class _Adapted:
    """What the model made of the source: parameters by path, which of them are other ones now."""

    params: Mapping[str, np.ndarray]
    changed: frozenset[str]
    known: Mapping[str, int]  # fields of config.model that they were made with


@dataclasses.dataclass
class _Matched:
    """The target with what the source has, and paths by what became of them."""

    values: dict[str, Any]
    loaded: list[str] = dataclasses.field(default_factory=list)
    resized: list[str] = dataclasses.field(default_factory=list)
    other: list[str] = dataclasses.field(default_factory=list)  # lines: shapes that differ


def _adapt(source: InitialWeights, config: ModelConfig) -> _Adapted:
    """The source as the model's traits would have it; _Unfit where they refuse it."""
    known = settings_of(source.params, source.stated, config)
    traits = config.traits
    try:
        if traits.check_source:  # what no shape tells
            traits.check_source(source.stated)
        if not traits.adaptation:  # what a model makes of weights of another kind
            return _Adapted(source.params, frozenset(), known)
        params = traits.adaptation.weights(source.params, _steps(traits, known))
    except ValueError as error:
        raise _Unfit(str(error)) from error
    inside = traits.adaptation.inside
    found = source.params
    was = {name: found.get(name, found.get(name.removeprefix(inside))) for name in params}
    changed = frozenset(
        name for name, old in was.items() if old is not None and _differ(old, params[name])
    )
    if f"{inside}encoder/patch_embed/kernel" in changed:
        known.pop("tubelet", None)  # made another one
    return _Adapted(params, changed, known)


def _match(
    source: _Adapted, target: Mapping[str, Any], clip: ClipInput | None, head: HeadRows | None
) -> _Matched:
    """Parameters of the same path; _Unfit where a position table is of no square grid."""
    found = _Matched(dict(target))
    for name, leaf in target.items():
        if name not in source.params:
            continue
        value = source.params[name]
        if name in HEAD and head is not None:
            if not head.fresh:
                found.values[name] = _head_values(head, value, leaf)
                found.loaded.append(name)
            continue
        changed = name in source.changed
        if clip is not None and name.rsplit("/", 1)[-1] in TABLES:
            try:
                value, changed = resize_patches(value, leaf.shape[0], source.known, clip.grid)
            except ValueError as error:
                raise _Unfit(str(error)) from error
        elif value.shape != leaf.shape:
            found.other.append(f"  {name}: found {value.shape}, expected {leaf.shape}")
            continue
        found.values[name] = value.astype(leaf.dtype)
        (found.resized if changed else found.loaded).append(name)
    return found


def _check(
    path: str, source: _Adapted, found: _Matched, target: Mapping[str, Any], config: Any
) -> None:
    """ValueError where shapes or settings differ, nothing was found, or values are not finite."""
    matched = [*found.loaded, *found.resized]
    fields = differing_fields(source.known, config) if matched or found.other else []
    if any("pos_embed/table:" in line for line in found.other):
        there = source.known.get("resolution", "of another number of patches")
        here = clip_of(config).resolution
        fields.append(
            f"  resolution {there} there, config.model.resolution = {here}: this position table "
            "is not resized"
        )
    if found.other or fields:
        raise ValueError(
            f"{path} does not fit this model:\n"
            + "\n".join([*fields, *found.other[:5]])
            + "\nGive these fields the values that the weights were made with"
        )
    if not found.loaded:
        raise ValueError(
            f"{path} shares no parameter with this model; it has "
            f"{', '.join(list(source.params)[:3])}, the model has {', '.join(list(target)[:3])}"
        )
    if bad := finite.describe({name: found.values[name] for name in matched}, len(target)):
        raise ValueError(
            f"{path}: {bad}. Take an earlier checkpoint, or the file of another precision; "
            "`ivj weights inspect` names what a file holds"
        )


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    return one is not other and not np.array_equal(one, other)


def _steps(traits: Traits, known: Mapping[str, int]) -> int:
    """Time steps of the position tables of weights that were made for `known`; 0 = not known."""
    if traits.clip_tables and {"frames", "tubelet"} <= known.keys():
        return known["frames"] // known["tubelet"]
    return 0


def _head(
    source: InitialWeights, target: Mapping[str, Any], rows: str, classes: Sequence[str]
) -> HeadRows | None:
    """Which rows of the head to take; None where one side has no classifier's head."""
    kernel = HEAD[0]
    if kernel not in source.params or kernel not in target:
        return None
    count, wanted = source.params[kernel].shape[-1], target[kernel].shape[-1]
    return head_rows(rows, count=count, names=source.classes, wanted=wanted, classes=classes)


def _head_values(head: HeadRows, value: np.ndarray, leaf: Leaf) -> np.ndarray:
    if not head.absent:
        return np.ascontiguousarray(value[..., head.rows]).astype(leaf.dtype)
    # A caller that gives shapes only gets zeros here, and the report says for which classes.
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    initial = np.zeros(leaf.shape, leaf.dtype) if abstract else to_host(leaf)
    return head.take(value, initial).astype(leaf.dtype)
