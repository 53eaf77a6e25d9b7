"""From records to batches: the endless training stream and the finite evaluation pass.

The training stream is a pure function of (settings, position). Positions count examples over all
hosts; step s of a run holds positions s * B to (s + 1) * B - 1, host h of n the h-th part of them
(with media types of different batch sizes: the positions after those of all earlier steps). So the
step number alone is the data position of a checkpoint, on any number of hosts, threads or worker
processes, and the rows of a global batch are in the order of their positions on all of them.

Order of operations (each reason was measured): shuffle and repeat act on the record numbers of each
set, mixing says which set has which place, then every example is read, decoded and augmented by its
position alone, written to its row of the batch, and only whole batches are made in parallel.
Nothing is filtered, ever: a dropped example would shift all later positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from data_pipelines import text
from data_pipelines.clips import augment, sampling
from data_pipelines.config import STREAM_VERSION, DataConfig, ViewConfig
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
from data_pipelines.stream.assemble import (
    Batch,
    Examples,
    Source,
    Tokenize,
    TrainBatches,
    check_text,
    check_views,
)
from data_pipelines.stream.parts import audio as sound
from data_pipelines.stream.parts import features
from data_pipelines.stream.prefetch import RowPool, check_reader, iterate, row_threads

# Steps are numbers without an end; grain wants to know one.
_ENDLESS = 2**62


class TrainStream(Iterator[Batch]):
    """Batches of one process, endless, starting at any step.

    A batch has `video` (b, T, H, W, 3) uint8, `label` (b,) int32, `index` (b,) int32, the record's
    number in its set, and `position` (b,) uint32, modulo 2**32 the place in the stream or, with
    config.views, index * views + view; in a mixture also `dataset` (b,) int32; with
    config.text also `has_text` (b,) bool and either `text` (b, L) int32 from the tokeniser or,
    without one, `caption` (b,) strings. With config.audio_seconds a step of videos has `audio`
    (b, samples) int16 at 16 kHz, of full scale 32768, and `audio_valid` (b,) int32, how many
    samples from the beginning are sound, 0 for a record without. With config.features there is
    `features/NAME` (b, ...) for each array of the companion, in its type, with config.views the
    row of the view. b is the batch of the
    step's media type over `processes`.

    Args:
      config: what the stream is.
      process, processes: which of how many hosts this is.
      start_step: first step to deliver.
      tokenize: n captions -> (n, L) int32, instead of config.tokenizer. It must not depend on
        anything else; its attribute `identity` or `name`, or else its type's or its own name, is
        part of the stream's identity.
      opened: the sets, where they are open already.

    Raises:
      ValueError: the settings contradict each other or the data set.
      FileNotFoundError, ImportError: a set, companion, vocabulary or library is not there.
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
        multiview.check_clip(config.clip, sampling.TRAIN_RULES)
        check_reader(config.reader)
        check_text(config.text)
        check_views(config)
        sound.check(config.audio_seconds, config.audio_window)
        tokenize = _tokenizer(config, tokenize)
        self.config = config
        opened = opened or mixture.open_components(config)
        self.classes, tables = mixture.join_classes(opened, config.merge_classes)
        self.sources = tuple(
            Source.of(number, *opened[number], tables[number], self.classes is not None, config)
            for number in range(len(opened))
        )
        self.plan = mixture.make_plan(
            config, [source.component for source in self.sources], [len(s) for s in self.sources]
        )
        for group in self.plan.groups:
            members = [self.sources[member] for member in group.members]
            features.check_alike([(s.component.name, s.features) for s in members if s.features])
            if group.batch % (processes * config.repeats):
                raise ValueError(
                    f"{_field(group.media)} = {group.batch} cannot be split evenly over "
                    f"{processes} processes"
                    + (f" x {config.repeats} repeats" if config.repeats > 1 else "")
                )
            samples = sound.length(config.audio_seconds) if group.media == "video" else 0
            tokens = config.text_length if tokenize is not None else 0
            check_batches(
                group.batch // processes, group.clip, config.reader, beside=2 * samples + 4 * tokens
            )
        self.substitutions = 0
        self.identity = self._identity(tokenize)
        self._pool = RowPool(row_threads(config.reader))
        make = TrainBatches(
            Examples(config), self.sources, self.plan, process, processes, self._pool, tokenize
        )
        steps = grain.MapDataset.range(start_step, _ENDLESS)
        self._batches = iterate(steps.map(make), config.reader)

    def _identity(self, tokenize: Tokenize | None) -> dict[str, Any]:
        config = self.config
        shared = {
            "seed": config.seed,
            "global_batch": config.global_batch,
            "clip": dataclasses.asdict(config.clip),
            "version": STREAM_VERSION,
        }
        # What is off is not mentioned, so that streams without it keep their identity.
        if config.repeats > 1:
            shared["repeats"] = config.repeats
        if config.views:
            shared["views"] = config.views
        if config.text != "off":
            shared["text"] = {"choice": config.text, "tokenizer": _name_of(tokenize)}
        if config.audio_seconds:
            samples = sound.length(config.audio_seconds)
            shared["audio"] = {"samples": samples, "window": config.audio_window}
        if not config.mixture:
            (source,) = self.sources
            # The order comes from a library: should a release draw it otherwise, we notice.
            first = [source.record(i) for i in range(min(16, len(source)))]
            return {**source.identity(), **shared, "first": first}
        first = {}
        for group in self.plan.groups:
            places = [group.order.place(i) for i in range(16)]
            first[group.media] = [
                [group.members[part], self.sources[group.members[part]].record(k)]
                for part, k in places
            ]
        sets = {
            source.component.name: {
                **source.identity(),
                "dataset": source.number,
                "media": source.component.media,
            }
            for source in self.sources
        }
        for group in self.plan.groups:
            for part, member in enumerate(group.members):
                sets[self.sources[member].component.name]["share"] = str(group.order.share(part))
        media = {
            group.media: {
                "batch": group.batch,
                "frames": group.clip.frames,
                "size": group.clip.size,
                "steps": str(self.plan.steps.share(i)),
            }
            for i, group in enumerate(self.plan.groups)
        }
        merge = config.merge_classes
        return {**shared, "mixture": sets, "media": media, "merge_classes": merge, "first": first}

    @property
    def dataset(self) -> Dataset:
        """The data set; of a mixture the first."""
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
        batch = next(self._batches)
        self.substitutions += int(batch.pop("substituted"))
        if self.substitutions > self.config.reader.max_substitutions:
            places = " or ".join(source.component.directory for source in self.sources)
            raise RuntimeError(
                f"{self.substitutions} unreadable records were substituted in this run, the limit "
                f"config.data.reader.max_substitutions is "
                f"{self.config.reader.max_substitutions}; find them with "
                f"`ivj data verify {places}`"
            )
        return batch

    def close(self) -> None:
        """Stops the reading threads and worker processes."""
        self._batches.close()
        self._pool.close()


def _field(media: str) -> str:
    return "config.data.image.global_batch" if media == "image" else "config.data.global_batch"


def _tokenizer(config: DataConfig, given: Tokenize | None) -> Tokenize | None:
    if not config.tokenizer:
        return given
    if given is not None:
        raise ValueError(
            f"config.data.tokenizer = {config.tokenizer!r} and a tokeniser of the caller's own: "
            "expected one of them"
        )
    if config.text == "off":
        raise ValueError(
            f"config.data.tokenizer = {config.tokenizer!r}, but config.data.text is off; set it to "
            "first or random, or leave the tokenizer out"
        )
    return text.make_tokenizer(config.tokenizer, config.text_length, clean=config.text_clean)


def _name_of(tokenize: Tokenize | None) -> str:
    if tokenize is None:
        return ""
    name = getattr(tokenize, "identity", "") or getattr(tokenize, "name", "")
    name = name or getattr(tokenize, "__qualname__", "")
    return str(name or type(tokenize).__qualname__)


@dataclasses.dataclass(frozen=True)
class _ViewBatches:
    """Step -> all views of this process's records. Picklable, for worker processes."""

    dataset: Dataset
    config: ViewConfig
    process: int
    processes: int
    pool: RowPool
    seconds: float = 0.0
    buffer: FrameBuffer = dataclasses.field(default_factory=FrameBuffer)

    def __call__(self, step: int) -> Batch:
        config, clip = self.config, self.config.clip
        count, size = config.segments * config.crops, clip.size
        first = step * config.batch + self.process
        places = range(first, (step + 1) * config.batch, self.processes)
        # All rows are written below, straight from the decoder's frames.
        video = np.empty((len(places), count, clip.frames, size, size, 3), np.uint8)
        rows = self.pool.map(lambda row: self._fill(places[row], video[row]), range(len(places)))
        index, label, valid, unreadable = zip(*rows, strict=True)
        return {
            "video": video.reshape(-1, *video.shape[2:]),
            "label": np.repeat(np.array(label, np.int32), count),
            "index": np.repeat(np.array(index, np.int32), count),
            "view": np.tile(np.arange(count, dtype=np.int32), len(places)),
            "valid": np.repeat(np.array(valid), count),
            "unreadable": np.array(sum(unreadable), np.int32),
        }

    def _fill(self, place: int, out: np.ndarray) -> tuple[int, int, bool, bool]:
        """Writes (segments * crops, T, H, W, 3); returns (index, label, valid, unreadable)."""
        index = min(place, len(self.dataset) - 1)
        valid = place < len(self.dataset)
        try:
            record = self.dataset.load(index)
            self._views(index, record, out)
            return index, int(label_of(record)), valid, False
        except UnreadableRecordError:
            if self.config.reader.on_corrupt == "raise":
                raise
            out[:] = 0
            return index, -1, False, valid

    def _views(self, index: int, record: schema.Record, out: np.ndarray) -> None:
        """(segments * crops, T, H, W, 3) uint8, segment-major."""
        times = sampling.beginning(record.timestamps_us, self.seconds)
        try:
            wanted = multiview.choose(self.config, times, record.fps)
        except ValueError as error:
            raise ValueError(f"{self.dataset.address(index, record)}: {error}") from error
        frames = self.dataset.frames(index, record, wanted.ravel(), self.buffer)
        multiview.cut(self.config, wanted, frames, out)


class ViewPass(Iterator[Batch]):
    """One evaluation pass of one process over a split, every view of every record once.

    The last batch is padded with `valid` = False so that all hosts take the same number of steps.
    A record that cannot be read raises, or under `substitute` is marked invalid and counted in
    `skipped`.

    Args:
      seconds: look at so much from the beginning of every clip only; 0 = all of it.
      dataset: the split, where it is open already.
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
        dataset: Dataset | None = None,
    ):
        multiview.check_clip(config.clip, sampling.VIEW_RULES)
        check_reader(config.reader)
        views = config.batch // processes * config.segments * config.crops
        check_batches(views, config.clip, config.reader, name="views.clip")
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
        self.steps = -(-len(self.dataset) // config.batch)
        self.skipped = 0
        self._pool = RowPool(row_threads(config.reader))
        make = _ViewBatches(self.dataset, config, process, processes, self._pool, seconds)
        self._batches = iterate(grain.MapDataset.range(self.steps).map(make), config.reader)

    def __len__(self) -> int:
        return self.steps

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.skipped += int(batch.pop("unreadable"))
        return batch

    def close(self) -> None:
        """Stops the reading threads and worker processes."""
        self._batches.close()
        self._pool.close()
