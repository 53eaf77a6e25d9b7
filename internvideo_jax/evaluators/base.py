"""What every evaluator gets and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from data_pipelines.config import DataConfig, ViewConfig
from data_pipelines.records import manifest, published, split_names
from data_pipelines.records.dataset import Dataset, open_dataset
from data_pipelines.stream.identity import class_difference
from data_pipelines.stream.parts.made import of_pass
from data_pipelines.stream.pipeline import ViewPass
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.inference.steps import Batch, Forward, Program, deal, fetched, tile_rows
from internvideo_jax.parallel.mesh import batch_parts, batch_share
from internvideo_jax.parallel.multihost import is_main
from internvideo_jax.protocols import Model, clip_of
from internvideo_jax.tasks import Input
from internvideo_jax.types import Params

ANIMATED = " animated"  # ends the name of an animation


class Pass(Protocol):
    """Batches of all views of some clips, as `ViewPass` over records and `FileViews` over files."""

    config: ViewConfig

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...
    def close(self) -> None:
        """Ends what reads ahead."""
        ...


@dataclasses.dataclass
class EvalContext:
    """One model on one mesh, with its compiled functions kept from run to run."""

    model: Model
    mesh: Mesh
    data: DataConfig
    seed: int = 0
    progress: bool = True
    params: Params | None = None  # set before every run
    classes: Sequence[str] = ()  # names of the classes of the model's head; empty: not known
    # Metrics of the evaluator's looks before this one in the same run, the first one first.
    earlier: Sequence[Mapping[str, float]] = ()
    # Of sets that were looked at before, by directory.
    manifests: Mapping[str, manifest.Manifest] = dataclasses.field(default_factory=dict)
    # What the passes since the last `look_anew` showed the model.
    seen: PixelDigest = dataclasses.field(default_factory=PixelDigest)
    _compiled: dict[Hashable, Any] = dataclasses.field(default_factory=dict)
    _datasets: dict[tuple[str, str, bool], Dataset] = dataclasses.field(default_factory=dict)

    def look_anew(self) -> None:
        """Forgets which pixels were seen."""
        self.seen = PixelDigest()

    def compiled(self, key: Hashable, build: Callable[[], Forward]) -> Forward:
        """`jax.jit` of what `build` returns, made once per key."""
        if key not in self._compiled:
            self._compiled[key] = jax.jit(build())
        return self._compiled[key]

    def dataset(self, source: Input) -> Dataset:
        """The split of an input, opened once for all evaluators and all their runs."""
        directory = source.data or self.data.eval or self.data.train
        if not directory and self.data.mixture:
            raise ValueError(
                "the run trains on a mixture, so its evaluators need a directory of their own: "
                "pass --config.data.eval=DIR"
            )
        check_crc = source.views.reader.check_crc
        key = directory, source.split, check_crc
        if key not in self._datasets:
            found = self.manifests.get(directory) or (directory and manifest.load(directory))
            split = source.split or default_split(found)
            self._datasets[key] = open_dataset(
                found, split, check_crc=check_crc, leave_out=self.data.leave_out
            )
        return self._datasets[key]

    def open(self, source: Input) -> ViewPass:
        """A pass over a split; ValueError when it does not fit the model, the mesh or the task."""
        views = source.views
        if "video" in source.parts:
            takes = clip_of(self.model.config)
            if (views.clip.frames, views.clip.resolution) != (takes.frames, takes.resolution):
                raise ValueError(
                    f"evaluation clips of {views.clip.frames} frames at {views.clip.resolution} "
                    f"pixels do not fit the model, which takes {takes.frames} frames at "
                    f"{takes.resolution}"
                )
        dataset = self.dataset(source)
        directory, split = dataset.manifest.directory, dataset.split
        share = batch_share(self.mesh)
        stream = ViewPass(
            directory,
            split,
            views,
            process=share.number,
            processes=share.count,
            seconds=source.seconds,
            limit=source.limit,
            dataset=dataset,
            parts=of_pass(self.data, views, source.parts),
        )
        if source.labelled and not sum(dataset.manifest.split(split).label_counts):
            raise ValueError(f"split {split!r} of {directory} has no labels, which are needed here")
        wanted = self.classes if source.head else ()
        if wanted and (difference := class_difference(dataset.classes, wanted, "the model's head")):
            raise ValueError(
                f"the classes of {directory} are not those of the model: {difference}. Ingest "
                "it with that class list"
            )
        return stream

    def outputs(
        self, views: Pass, key: Hashable, build: Callable[[], Forward], title: str
    ) -> Generator[tuple[dict[str, np.ndarray], Any]]:
        """Yields (batch without its large arrays, host copy of function(params, batch)).

        Rows are dealt anew: a device always computes `tile_rows` of them at a time, the last ones
        padded with `valid` = False. The shape of a matmul decides in which order it adds up, so
        with shapes that followed the number of devices, results would too. On several hosts every
        host gets the rows of all of them.
        """
        program = Program(self.compiled(key, build), self.mesh)
        config = views.config
        rows = tile_rows(config.clips * config.crops) * self.shards()
        share = batch_share(self.mesh)
        rows, rest = divmod(rows, share.count)
        if rest:
            raise ValueError(
                f"a mesh that splits batches over {self.shards()} devices cannot be fed by "
                f"{share.count} processes; expected a multiple of them"
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
        seen = PixelDigest()

        def start(batch: Batch) -> Any:
            running = program(self.params, batch)
            seen.add(batch)  # while the device computes
            return running

        try:
            started = ((None, start(batch)) for batch in deal(steps, rows))
            yield from (step for _, step in fetched(started))
            seen.join(share.first)
            self.seen.merge(seen)
        finally:
            views.close()

    def shards(self) -> int:
        """Devices over which the mesh splits a batch."""
        return batch_parts(self.mesh)


def finite(
    outputs: Iterable[tuple[Batch, np.ndarray]], what: str
) -> Iterator[tuple[Batch, np.ndarray]]:
    """The same steps; ValueError as `check_finite` for the rows that have a label."""
    for batch, values in outputs:
        check_finite(values, batch, batch["valid"] & (batch["label"] >= 0), what)
        yield batch, values


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


def default_split(directory: str | manifest.Manifest) -> str:
    """The split to evaluate on where none is named: test, else val, else what there is."""
    found = manifest.load(directory) if isinstance(directory, str) else directory
    return split_names.to_evaluate(list(found.splits))


def held_out_warning(splits: Collection[str], split: str) -> str:
    """What to know of numbers of `split` where a dataset keeps no split from training; or ""."""
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
        **({} if dataset.kept is None else {"left_out": len(dataset) - len(dataset.kept)}),
        **published.describe(dataset.manifest, dataset.split),
        "data_fingerprint": dataset.manifest.fingerprint(dataset.split)[:16],
        **dataset.manifest.image_options(),
        **describe_views(views),
    }


def describe_views(views: ViewConfig) -> dict[str, Any]:
    """Which clips of a video are looked at."""
    return {
        "frames": views.clip.frames,
        "stride": views.clip.stride,
        "resolution": views.clip.resolution,
        "sampling": views.clip.sampling,
        "clips": views.clips,
        "crops": views.crops,
        "crop_rule": views.crop_rule,
    }
