"""What every evaluator gets and gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from data_pipelines.config import DataConfig, ViewConfig
from data_pipelines.records import manifest, split_names
from data_pipelines.records.dataset import Dataset
from data_pipelines.stream.identity import class_difference
from data_pipelines.stream.parts.features import PREFIX
from data_pipelines.stream.parts.made import of_pass
from data_pipelines.stream.pipeline import ViewPass
from internvideo_jax.evaluators.per_video import Scored
from internvideo_jax.parallel.mesh import BATCH_AXES, batch_sharding
from internvideo_jax.parallel.multihost import is_main, to_global, to_host
from internvideo_jax.types import Params

# Clips of a device's share of a step, at most: matmuls of ten thousand rows for usual clips,
# and little padding where a split is nearly empty.
TILE = 8
LARGE = ("video", "audio")  # these, and cached features, do not come back to the host
ANIMATED = " animated"  # ends the name of an animation

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Result:
    """Numbers, and everything needed to say what they mean."""

    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]  # views, merge rule, data fingerprint ...
    tables: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # JSON values
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # (H, W, 3)
    animations: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # (T, H, W, 3)
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of pictures, by name
    sheets: Mapping[str, str] = dataclasses.field(default_factory=dict)  # CSV, for people
    scored: Scored | None = None  # of every video, for those who ask


class Evaluator(Protocol):
    """A frozen dataclass with the settings of one task."""

    @property
    def name(self) -> str: ...
    @property
    def every(self) -> int:
        """Steps between runs during training; 0 = only at the end, -1 = never."""
        ...

    def inputs(self) -> Sequence[Input]:
        """What it will read, so that a run can check it before the first step."""
        ...

    def run(self, context: EvalContext) -> Result: ...


@dataclasses.dataclass(frozen=True)
class Input:
    """One split that an evaluator reads."""

    data: str  # directory; empty: the run's
    split: str  # empty: that of `default_split`
    views: ViewConfig
    labelled: bool  # whether it needs labels
    _: dataclasses.KW_ONLY
    head: bool = False  # whether its classes must be those of the model's head
    seconds: float = 0.0  # only so much from the beginning of every clip; 0 = all
    # Parts of the batch: video, audio, text, features with the settings of config.data, or names of
    # config.data.parts.
    parts: tuple[str, ...] = ("video",)


@dataclasses.dataclass
class EvalContext:
    """One model on one mesh, with its compiled functions kept from run to run."""

    model: Any
    mesh: Mesh
    data: DataConfig
    seed: int = 0
    progress: bool = True
    params: Params | None = None  # set before every run
    classes: Sequence[str] = ()  # names of the classes of the model's head; empty: not known
    _compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def compiled(self, key: Any, build: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """`jax.jit` of what `build` returns, made once per key."""
        if key not in self._compiled:
            self._compiled[key] = jax.jit(build())
        return self._compiled[key]

    def open(self, source: Input) -> ViewPass:
        """A pass over a split; ValueError when it does not fit the model, the mesh or the task."""
        config, views = self.model.config, source.views
        fits = (views.clip.frames, views.clip.size) == (config.frames, config.size)
        if "video" in source.parts and not fits:
            raise ValueError(
                f"evaluation clips of {views.clip.frames} frames at {views.clip.size} pixels do "
                f"not fit the model, which takes {config.frames} frames at {config.size}"
            )
        directory = source.data or self.data.eval or self.data.train
        if not directory and self.data.mixture:
            raise ValueError(
                "the run trains on a mixture, so its evaluators need a directory of their own: "
                "pass --config.data.eval=DIR"
            )
        split = source.split or default_split(directory)
        stream = ViewPass(
            directory,
            split,
            views,
            process=jax.process_index(),
            processes=jax.process_count(),
            seconds=source.seconds,
            parts=of_pass(self.data, views, source.parts),
        )
        info = stream.dataset.manifest.split(split)
        if source.labelled and not sum(info.label_counts):
            raise ValueError(f"split {split!r} of {directory} has no labels, which are needed here")
        if source.head and self.classes:
            found = stream.dataset.classes
            if difference := class_difference(found, self.classes, "the model's head"):
                raise ValueError(
                    f"the classes of {directory} are not those of the model: {difference}. Ingest "
                    "it with that class list"
                )
        return stream

    def outputs(
        self, views: ViewPass, key: Any, build: Callable[[], Callable[..., Any]], title: str
    ) -> Generator[tuple[dict[str, np.ndarray], Any]]:
        """Yields (batch without its `LARGE` arrays, host copy of function(params, batch)).

        Rows are dealt anew: a device always computes `tile_rows` of them at a time, the last ones
        padded with `valid` = False. The shape of a matmul decides in which order it adds up, so
        with shapes that followed the number of devices, results would too. On several hosts every
        host gets the rows of all of them.
        """
        function = self.compiled(key, build)
        sharding = batch_sharding(self.mesh)
        config = views.config
        rows = tile_rows(config.segments * config.crops) * self.shards()
        rows, rest = divmod(rows, jax.process_count())
        if rest:
            raise ValueError(
                f"a mesh that splits batches over {self.shards()} devices cannot be fed by "
                f"{jax.process_count()} processes; expected a multiple of them"
            )
        steps = tqdm(
            views,
            total=len(views),
            desc=title,
            unit="batch",
            leave=False,
            disable=None if self.progress and is_main() else True,
            mininterval=1.0,
        )
        running: list[tuple[dict[str, jax.Array], Any]] = []
        try:
            for batch in deal(steps, rows):
                placed = to_global(batch, sharding)
                with jax.set_mesh(self.mesh):
                    result = function(self.params, placed)
                small = {
                    name: array
                    for name, array in placed.items()
                    if name not in LARGE and not name.startswith(PREFIX)
                }
                running.append((small, result))
                if len(running) > 1:  # one step computes while the one before is fetched
                    yield to_host(running.pop(0))
            if running:
                yield to_host(running.pop(0))
        finally:
            views.close()

    def shards(self) -> int:
        """Devices over which the mesh splits a batch."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)


def check_finite(values: np.ndarray, batch: Batch, used: np.ndarray, what: str) -> None:
    """ValueError where a row of (R, ...) is NaN or infinite.

    Hosts have the rows of all of them (`outputs`), so all stop alike and none waits for another.

    Args:
      used: (R,) bool, rows that the numbers are made of.
    """
    bad = np.flatnonzero(used & ~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        record, view = min(zip(batch["index"][bad], batch["view"][bad], strict=True))
        raise ValueError(
            f"the {what} of record {record} (view {view}) are not finite, as are those of "
            f"{len(bad)} of {np.count_nonzero(used)} clips of this step: the weights or the record "
            "are broken"
        )


def tile_rows(views: int) -> int:
    """Clips that a device computes at a time: whole videos, or an even share of one's views.

    It depends on the number of views per video only, never on devices or processes.
    """
    if views < TILE:
        return TILE // views * views
    return max(rows for rows in range(1, TILE + 1) if views % rows == 0)


def deal(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """The same rows in batches of exactly `rows`; the last is padded with `valid` = False."""
    parts: list[Batch] = []
    held = 0
    for batch in batches:
        parts.append(batch)
        held += len(batch["valid"])
        while held >= rows:
            whole = _joined(parts)
            yield {name: value[:rows] for name, value in whole.items()}
            parts, held = [{name: value[rows:] for name, value in whole.items()}], held - rows
    if held:
        last = _joined(parts)
        padded = {
            name: np.concatenate([value, np.repeat(value[-1:], rows - held, axis=0)])
            for name, value in last.items()
        }
        padded["valid"][held:] = False
        yield padded


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def default_split(directory: str) -> str:
    """The split to evaluate on where none is named: test, else val, else what there is."""
    return split_names.to_evaluate(list(manifest.load(directory).splits))


def held_out_warning(splits: Collection[str], split: str) -> str:
    """What to know of numbers of `split` where a data set keeps no split from training; or ""."""
    if any(map(split_names.is_held_out, splits)):
        return ""
    return (
        f"no split is called test or val: these are numbers of the training clips if the model "
        f"learned from split {split!r}"
    )


def describe_data(dataset: Dataset, views: ViewConfig) -> dict[str, Any]:
    """The part of a protocol that says which clips were looked at."""
    warning = held_out_warning(dataset.manifest.splits, dataset.split)
    return {
        "data": dataset.manifest.directory,
        "split": dataset.split,
        **({"warning": warning} if warning else {}),
        "records": len(dataset),
        "data_fingerprint": dataset.manifest.fingerprint(dataset.split)[:16],
        **dataset.manifest.picture_options(),
        **describe_views(views),
    }


def describe_views(views: ViewConfig) -> dict[str, Any]:
    """Which clips of a video are looked at."""
    return {
        "frames": views.clip.frames,
        "stride": views.clip.stride,
        "size": views.clip.size,
        "sampling": views.clip.sampling,
        "segments": views.segments,
        "crops": views.crops,
        "crop_rule": views.crop_rule,
    }
