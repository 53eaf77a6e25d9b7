"""From records to batches: the endless training stream and the finite evaluation pass.

The training stream is a pure function of (settings, position). Positions count examples over all
hosts; step s of a run holds positions s * B to (s + 1) * B - 1, host h of n the h-th part of them
(with media types of different batch sizes: the positions after those of all earlier steps). So the
step number alone is the data position of a checkpoint, on any number of hosts, threads or worker
processes, and the rows of a global batch are in the order of their positions on all of them.

Order of operations (each reason was measured): shuffle and repeat act on the record numbers of each
set, mixing says which set has which position, then every example is read, decoded and augmented by
its position alone, written to its row of the batch, and only whole batches are made in parallel.
Nothing is filtered, ever: a dropped example would shift all later positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.clips import augment, sampling
from data_pipelines.config import DataConfig, ViewConfig
from data_pipelines.records import schema
from data_pipelines.records.dataset import (
    Dataset,
    FrameBuffer,
    UnreadableRecordError,
    label_of,
    open_dataset,
)
from data_pipelines.records.memory import check_batches
from data_pipelines.stream import identity, mixture, multiview
from data_pipelines.stream.assemble import TrainBatches
from data_pipelines.stream.parts.base import Batch, Part, Reading, Rows, Window, joined, row_bytes
from data_pipelines.stream.parts.text import Tokenize
from data_pipelines.stream.parts.video import Views
from data_pipelines.stream.prefetch import Ahead, RowPool, check_reader, row_threads


class TrainStream(Ahead):
    """Batches of one process, endless, starting at any step: a grain iterator over `TrainBatches`.

    A batch has `label` (b,) int32, `index` (b,) int32, the record's number in its set, and
    `position` (b,) uint32, modulo 2**32 that in the stream or, with V config.fixed_views,
    index * V + view; in a mixture also `dataset` (b,) int32; and the arrays of its parts (`stream.
    parts`): `video` (b, T, H, W, 3) uint8, and what config.text, config.audio_seconds,
    config.features and config.parts ask for. b is the batch of the step's media type over
    `processes`.

    Args:
      config: what the stream is.
      process, processes: which of how many hosts this is.
      start_step: first step to deliver.
      tokenize, opened: as `TrainBatches`.

    Attributes:
      batches: step -> batch, for random access or transforms of grain.
      substitutions: unreadable records that others stand in for, so far.

    Raises:
      As `TrainBatches`.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        process: int = 0,
        processes: int = 1,
        start_step: int = 0,
        tokenize: Tokenize | None = None,
        opened: mixture.Opened = (),
    ):
        self.batches = TrainBatches(
            config, process=process, processes=processes, tokenize=tokenize, opened=opened
        )
        self.config, self.classes = config, self.batches.classes
        self.sources, self.plan = self.batches.sources, self.batches.plan
        self.identity = self.batches.identity
        self.substitutions = 0
        super().__init__(self.batches, config.reader, self.batches.pool, start_step)

    @property
    def dataset(self) -> Dataset:
        """The dataset; of a mixture the first."""
        return self.sources[0].dataset

    @property
    def transform(self) -> augment.TrainTransform:
        """The transform; of a mixture that of the first set."""
        return self.sources[0].transform

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides which pixels come at which position."""
        return identity.digest(self.identity)

    def seen(self, step: int) -> dict[str, float]:
        """What the first `step` steps of all hosts hold of each set of a mixture.

        Returns:
          `data/NAME/share` of the examples and `data/NAME/epochs` over the set; empty without a
          mixture.
        """
        if not self.config.mixture:
            return {}
        draws, values = self.plan.draws(step), {}
        for source, count in zip(self.sources, draws, strict=True):
            name = source.component.name
            values[f"data/{name}/share"] = count / max(sum(draws), 1)
            values[f"data/{name}/epochs"] = count / (len(source) * self.config.repeats)
        return values

    def __next__(self) -> Batch:
        batch = super().__next__()
        self.substitutions += int(batch.pop("substituted"))
        if self.substitutions > self.config.reader.max_substitutions:
            directories = " or ".join(source.component.directory for source in self.sources)
            raise RuntimeError(
                f"{self.substitutions} unreadable records were substituted in this run, the limit "
                f"config.data.reader.max_substitutions is "
                f"{self.config.reader.max_substitutions}; find them with "
                f"`ivj data verify {directories}`"
            )
        return batch


class ViewBatches(grain.MapDataset[Batch]):
    """Step -> all views of this process's records, as a grain dataset. Picklable.

    An element has the arrays of its parts, `label`, `index` and `view` (b,) int32, `valid` (b,)
    bool, and `unreadable` () int32, how many of its records could not be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: ViewConfig,
        parts: Sequence[Part],
        *,
        process: int = 0,
        processes: int = 1,
        seconds: float = 0.0,
        limit: int = 0,
    ):
        self.records = dataset.used  # evenly spaced ones of them, under a limit
        if 0 < limit < len(self.records):
            places = (number * len(self.records) // limit for number in range(limit))
            self.records = [int(self.records[place]) for place in places]
        super().__init__(grain.MapDataset.range(len(self.records)))
        self.dataset, self.config, self.parts = dataset, config, tuple(parts)
        self.process, self.processes, self.seconds = process, processes, seconds
        self.pool, self.buffer = RowPool(row_threads(config.reader)), FrameBuffer()

    def __len__(self) -> int:
        return -(-len(self.records) // self.config.batch)

    def __getitem__(self, index: Any) -> Any:
        return self.slice(index) if isinstance(index, slice) else self._batch(int(index))

    def _batch(self, step: int) -> Batch:
        config = self.config
        count = config.clips * config.crops
        first = step * config.batch + self.process
        positions = range(first, (step + 1) * config.batch, self.processes)
        # All rows are written below, straight from the decoder's frames.
        arrays = [part.rows(len(positions) * count) for part in self.parts]

        def fill(row: int) -> tuple[int, int, bool, bool]:
            own = slice(row * count, (row + 1) * count)
            out = [{name: array[own] for name, array in each.items()} for each in arrays]
            return self._fill(positions[row], out)

        rows = self.pool.map(fill, range(len(positions)))
        index, label, valid, unreadable = zip(*rows, strict=True)
        batch: Batch = {
            "label": np.repeat(np.array(label, np.int32), count),
            "index": np.repeat(np.array(index, np.int32), count),
            "view": np.tile(np.arange(count, dtype=np.int32), len(positions)),
            "valid": np.repeat(np.array(valid), count),
            "unreadable": np.array(sum(unreadable), np.int32),
        }
        for part, each in zip(self.parts, arrays, strict=True):
            batch.update(part.finish(each))
        return batch

    def _fill(self, position: int, out: Sequence[Rows]) -> tuple[int, int, bool, bool]:
        """Writes the rows of a record; returns (index, label, valid, unreadable)."""
        index = int(self.records[min(position, len(self.records) - 1)])
        valid = position < len(self.records)
        try:
            record = self.dataset.load(index)
            reading = self._read(index, record)
            for part, rows in zip(self.parts, out, strict=True):
                part.fill(reading, rows)
            return index, int(label_of(record)), valid, False
        except UnreadableRecordError:
            if self.config.reader.on_corrupt == "raise":
                raise
            for array in (array for rows in out for array in rows.values()):
                array[:] = "" if array.dtype == np.object_ else 0
            return index, -1, False, valid

    def _read(self, index: int, record: schema.Record) -> Reading:
        """The record, with the frames of its views where a part shows them."""
        config, wanted = self.config, None
        if any("video" in part.spec() for part in self.parts):
            times = sampling.beginning(record.timestamps_us, self.seconds)
            try:
                wanted = multiview.choose(config, times, record.fps)
            except ValueError as error:
                raise ValueError(f"{self.dataset.address(index, record)}: {error}") from error

        def window(row: int) -> Window:
            edges = multiview.windows(config, record.height, record.width)
            return Window(*edges[row % config.crops], mirrored=False)

        return Reading(self.dataset, index, record, wanted, self.buffer, window)


class ViewPass(Ahead):
    """One evaluation pass of one process over a split, every view of every record once.

    The last batch is padded with `valid` = False so that all hosts take the same number of steps.
    A record that cannot be read raises, or under `substitute` is marked invalid and counted in
    `skipped`.

    Args:
      seconds: look at so much from the beginning of every clip only; 0 = all of it.
      limit: look at so many records only, evenly spaced over the split; 0 = all of them.
      dataset: the split, where it is open already.
      parts: of the batch, not yet opened; by default the pixels.
    """

    def __init__(
        self,
        directory: str,
        split: str,
        config: ViewConfig,
        *,
        process: int = 0,
        processes: int = 1,
        seconds: float = 0.0,
        limit: int = 0,
        dataset: Dataset | None = None,
        parts: Sequence[Part] = (),
    ):
        multiview.check_clip(config.clip, sampling.VIEW_RULES)
        check_reader(config.reader)
        parts = tuple(parts) or (Views(config),)
        views = config.batch // processes * config.clips * config.crops
        size = row_bytes(joined(parts))
        clip = config.clip if any(isinstance(part, Views) for part in parts) else None
        check_batches(views, size, clip, config.reader, name="views.clip")
        multiview.check(config)  # lists its crops, so how many there are comes first
        if seconds < 0:
            raise ValueError(f"seconds = {seconds:g}: expected a length, or 0 for whole clips")
        if config.batch % processes:
            raise ValueError(
                f"an evaluation batch of {config.batch} videos cannot be split evenly over "
                f"{processes} processes"
            )
        self.config = config
        if dataset is None:
            dataset = open_dataset(directory, split, check_crc=config.reader.check_crc)
        self.dataset = dataset
        self.batches = ViewBatches(
            self.dataset, config, [part.open(self.dataset) for part in parts],
            process=process, processes=processes, seconds=seconds, limit=limit,
        )  # fmt: skip
        self.steps = len(self.batches)
        self.skipped = 0
        super().__init__(self.batches, config.reader, self.batches.pool)

    def __len__(self) -> int:
        return self.steps

    def __next__(self) -> Batch:
        batch = super().__next__()
        self.skipped += int(batch.pop("unreadable"))
        return batch
