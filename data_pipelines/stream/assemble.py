"""One step of the training stream: its records read, and their rows of the batch filled."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.clips import augment, sampling
from data_pipelines.config import STREAM_VERSION, DataConfig
from data_pipelines.records import schema
from data_pipelines.records.dataset import Dataset, FrameBuffer, UnreadableRecordError, label_of
from data_pipelines.records.media import MEDIA
from data_pipelines.records.memory import check_batches
from data_pipelines.stream import mixture
from data_pipelines.stream.mixture import Component
from data_pipelines.stream.parts import features, made
from data_pipelines.stream.parts.base import (
    Batch,
    Part,
    Reading,
    Rows,
    Spec,
    Window,
    generator,
    given,
    joined,
    row_bytes,
)
from data_pipelines.stream.parts.text import Tokenize, tokenizer_of
from data_pipelines.stream.parts.video import Video
from data_pipelines.stream.prefetch import RowPool, row_threads
from data_pipelines.stream.settings import check_settings

ENDLESS = 2**62  # steps are numbers without an end; grain wants to know one


def wrapped(positions: np.ndarray) -> np.ndarray:
    """Positions as a batch has them: uint32, modulo 2**32."""
    return (np.asarray(positions, np.int64) & 0xFFFFFFFF).astype(np.uint32)


@dataclasses.dataclass(frozen=True)
class Source:
    """One set of the stream, endlessly shuffled.

    Attributes:
      number: the `dataset` of its examples.
      parts: of its examples.
      labels: its class numbers -> those of the stream, None where they are the same.
      labelled: whether the stream has labels.
      order: n-th draw -> record number; grain's, random access.
    """

    number: int
    component: Component
    dataset: Dataset
    parts: tuple[Part, ...]
    labels: np.ndarray | None
    labelled: bool
    order: Any

    @classmethod
    def of(
        cls,
        number: int,
        component: Component,
        dataset: Dataset,
        labels: np.ndarray | None,
        labelled: bool,
        config: DataConfig,
        tokenize: Tokenize | None = None,
    ) -> Source:
        """The source of a set, in an order that its number decides."""
        parts = made.of_set(config, component, tokenize, dataset)
        # Sets of the same length must not come in the same order.
        seed = config.seed
        if number:
            seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        order: Any = grain.MapDataset.range(len(dataset.used))
        order = order.seed(seed).shuffle().repeat(None)
        return cls(number, component, dataset, parts, labels, labelled, order)

    def __len__(self) -> int:
        return len(self.dataset.used)

    @property
    def transform(self) -> augment.TrainTransform:
        """What is done to its pixels; ValueError for a set without."""
        for part in self.parts:
            if isinstance(part, Video) and part.transform is not None:
                return part.transform
        raise ValueError(f"sets of media={self.component.media} have no pixels")

    def record(self, draw: int) -> int:
        """The record number of a draw."""
        return int(self.dataset.used[int(self.order[draw])])

    def after(self, record: int) -> int:
        """The record that stands in for one that cannot be read: the next one, in a circle."""
        used = self.dataset.used
        return int(used[(int(np.searchsorted(used, record)) + 1) % len(used)])

    def passes(self, draw: int) -> int:
        """Passes over the set that were complete before a draw."""
        return draw // len(self)

    def label(self, record: schema.Record) -> int:
        """The class of a record in the mixture, -1 for none."""
        label = int(label_of(record)) if self.labelled else -1
        return label if label < 0 or self.labels is None else int(self.labels[label])

    def identity(self, config: DataConfig) -> dict[str, Any]:
        """What decides the set's share of the stream's examples, as JSON values."""
        identity: dict[str, Any] = {
            "records": self.dataset.manifest.fingerprint(self.component.split),
            "split": self.component.split,
        }
        for part in self.parts:
            if isinstance(part, Video | features.Features):
                identity |= part.identity()
        # What is off is not mentioned, so that streams without it keep their identity.
        if self.dataset.kept is not None:
            kept = np.asarray(self.dataset.kept, "<i8").tobytes()
            identity["kept"] = hashlib.sha256(kept).hexdigest()[:16]
        if self.component.prompt:
            identity["prompt"] = self.component.prompt
        if config.parts:
            last = self.parts[-len(config.parts) :]
            own = zip(config.parts, last, strict=True)
            identity["parts"] = {name: dict(part.identity()) for name, part in own}
        return identity

    def check_media(self, index: int, record: schema.Record) -> None:
        """ValueError for a record of another media type than its set was given as."""
        media = MEDIA[self.component.media]
        # Records that another program wrote do not say that their one frame is an image.
        one_frame = media.still and len(record.frames) == 1
        if record.media_type not in media.holds and not one_frame:
            name = self.component.name or "NAME"
            raise ValueError(
                f"{self.dataset.address(index, record)}: is {_article(record.media_type)} in a "
                f"set of media={self.component.media}; give the set as "
                f'config.data.mixture="{name}={self.component.directory}; '
                f'media={record.media_type}", and images and videos as sets of their own'
            )


def _article(media: str) -> str:
    return f"{'an' if media[0] in 'aeiou' else 'a'} {media}"


@dataclasses.dataclass(frozen=True)
class Example:
    """What of the examples of one record is not in their parts.

    Attributes:
      index: record number.
      position: what the random draws of the first example came from; its position, or with
        config.fixed_views index * fixed_views + view.
      dataset: number of the set.
      substituted: whether the record stands in for another.
    """

    index: int
    label: int
    position: int
    dataset: int
    substituted: bool


@dataclasses.dataclass(frozen=True)
class Examples:
    """Makes the examples of one record, from its number and what their random draws come from.

    Picklable, for worker processes.
    """

    config: DataConfig
    buffer: FrameBuffer = dataclasses.field(default_factory=FrameBuffer)

    def fill(
        self, source: Source, index: int, out: Sequence[Rows], *, position: int, view: int = 0
    ) -> Example:
        """Writes the examples of a record to the `repeats` rows of `out`.

        As in the references, the frames are chosen and decoded once, crops and flips drawn for
        every example. Under `substitute` the next readable record in index order takes the place
        of one that is not.

        Args:
          out: the rows of each part of the source.
          position: position of the first example. With config.fixed_views the draws come from
            index * fixed_views + view instead, whatever the position.
          view: of the record, below config.views.
        """
        config, tries = self.config, 0
        rng = generator(config.seed, position)
        while True:
            if config.fixed_views:  # of the record that is read, so that its cached arrays fit
                position = index * config.fixed_views + view
                rng = generator(config.seed, position)
            try:
                reading = self._read(source, index, position, view, rng)
                for part, rows in zip(source.parts, out, strict=True):
                    part.fill(reading, rows)
                label = source.label(reading.record)
                return Example(index, label, position, source.number, tries > 0)
            except UnreadableRecordError:
                tries += 1
                if config.reader.on_corrupt == "raise" or tries >= len(source):
                    raise
                index = source.after(index)

    def _read(
        self, source: Source, index: int, position: int, view: int, rng: np.random.Generator
    ) -> Reading:
        """The record with its frames drawn; `rng` is where the draws of the pixels go on."""
        config, media, dataset = self.config, MEDIA[source.component.media], source.dataset
        record, wanted = dataset.load(index), None
        source.check_media(index, record)
        if media.pixels:
            clip = config.clip_of(media.name)
            try:
                wanted = sampling.train_frames(
                    clip.sampling, record.timestamps_us, record.fps, clip.frames, clip.stride, rng
                )[None]
            except ValueError as error:
                raise ValueError(f"{dataset.address(index, record)}: {error}") from error

        def window(row: int) -> Window:
            draws = given(reading.generator(row))
            edges, mirrored = source.transform.window(record.height, record.width, draws)
            return Window(*edges, mirrored)

        positions = range(position, position + config.repeats)
        reading = Reading(
            dataset, index, record, wanted, self.buffer, window if media.pixels else _whole,
            positions, config.seed, rng.bit_generator.state, view, source.labels,
        )  # fmt: skip
        return reading


def _whole(row: int) -> Window:
    """All of the image, where its pixels are not looked at."""
    return Window(0.0, 0.0, 1.0, 1.0, False)


class TrainBatches(grain.MapDataset[Batch]):
    """Step -> the batch of one process, as a grain dataset with random access and without an end.

    Its parents are the orders of the sets: source, order, the examples by position, batch. Rows are
    filled in place by several threads, so that no pixel is copied to make a batch. An element has
    the arrays of `spec` for the media type of its step, with a first axis of the examples of this
    process, and `substituted` () int32, how many of its records stand in for unreadable ones.
    Picklable, for worker processes.

    Args:
      config: what the stream is.
      process, processes: which of how many hosts this is.
      tokenize: n captions -> (n, L) int32, instead of config.tokenizer. It must not depend on
        anything else; its attribute `identity` or `name`, or else its type's or its own name, is
        part of the stream's identity.
      opened: the sets, where they are open already.

    Attributes:
      classes: names of the classes; None where the sets of a mixture have different ones.
      identity: everything that decides which pixels come at which position, as JSON values.

    Raises:
      ValueError: the settings contradict each other or the dataset.
      FileNotFoundError, ImportError: a set, companion, vocabulary or library is not there.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        process: int = 0,
        processes: int = 1,
        tokenize: Tokenize | None = None,
        opened: mixture.Opened = (),
    ):
        check_settings(config)
        tokenize = tokenizer_of(config, tokenize)
        opened = opened or mixture.open_components(config)
        self.classes, tables = mixture.join_classes(opened, config.merge_classes)
        self.sources = tuple(
            Source.of(
                number, *opened[number], tables[number], self.classes is not None, config, tokenize
            )
            for number in range(len(opened))
        )
        components = [source.component for source in self.sources]
        self.plan = mixture.make_plan(config, components, [len(s) for s in self.sources])
        for group in self.plan.groups:
            spec = _common([self.sources[member] for member in group.members])
            if group.batch % (processes * config.repeats):
                raise ValueError(
                    f"{_field(group.media)} = {group.batch} cannot be split evenly over "
                    f"{processes} processes"
                    + (f" x {config.repeats} repeats" if config.repeats > 1 else "")
                )
            clip = group.clip if MEDIA[group.media].pixels else None
            check_batches(group.batch // processes, row_bytes(spec), clip, config.reader)
        self.config, self.examples = config, Examples(config)
        self.pool = RowPool(row_threads(config.reader))
        self.process, self.processes = process, processes
        self.identity = _identity(self, tokenize)
        super().__init__([source.order for source in self.sources])

    def spec(self, media: str) -> Spec:
        """The arrays of one example of a media type, cached features included."""
        source = next(s for s in self.sources if s.component.media == media)
        return {**made.columns(self.config), **joined(source.parts)}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: Any) -> Any:
        return self.slice(index) if isinstance(index, slice) else self(int(index))

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        repeats, slot = self.config.repeats, self.plan.slot(step)
        group, rows = slot.group, slot.group.batch // self.processes
        first, position = self.process * rows, slot.position + self.process * rows
        parts = self.sources[group.members[0]].parts
        arrays = [part.rows(rows) for part in parts]

        def fill(number: int) -> Example:
            own = slice(number * repeats, (number + 1) * repeats)
            draw = slot.record + (first + own.start) // repeats
            part, number = group.order.locate(draw)
            source = self.sources[group.members[part]]
            out = [{name: array[own] for name, array in each.items()} for each in arrays]
            index, view = (
                source.record(number),
                source.passes(number) % max(self.config.fixed_views, 1),
            )
            return self.examples.fill(source, index, out, position=position + own.start, view=view)

        filled = self.pool.map(fill, range(rows // repeats))
        positions = np.concatenate(
            [np.arange(each.position, each.position + repeats) for each in filled]
        )
        batch: Batch = {"position": wrapped(positions)}
        for name in ("label", "index", "dataset"):
            if name in made.columns(self.config):
                values = np.array([getattr(each, name) for each in filled], np.int32)
                batch[name] = np.repeat(values, repeats)
        batch["substituted"] = np.array(sum(each.substituted for each in filled), np.int32)
        for part, each in zip(parts, arrays, strict=True):
            batch.update(part.finish(each))
        return batch


def _field(media: str) -> str:
    return "config.data.image.global_batch" if media == "image" else "config.data.global_batch"


def _common(sources: Sequence[Source]) -> Spec:
    """The arrays of sets that share batches; ValueError where they differ."""
    cached = [(s.component.name, part) for s in sources for part in s.parts]
    features.check_alike([(n, part) for n, part in cached if isinstance(part, features.Features)])
    first = joined(sources[0].parts)
    for source in sources[1:]:
        if joined(source.parts) != first:
            raise ValueError(
                f"config.data.parts: the examples of {source.component.name} have other arrays "
                f"than those of {sources[0].component.name}; sets of one mixture and media type "
                "need the same"
            )
    return first


def _identity(batches: TrainBatches, tokenize: Tokenize | None) -> dict[str, Any]:
    config, plan, sources = batches.config, batches.plan, batches.sources
    shared: dict[str, Any] = {
        "seed": config.seed,
        "global_batch": config.global_batch,
        "clip": {  # `size`: as streams have called it from the first version on
            "frames": config.clip.frames,
            "stride": config.clip.stride,
            "size": config.clip.resolution,
            "sampling": config.clip.sampling,
        },
        "version": STREAM_VERSION,
    }
    # What is off is not mentioned, so that streams without it keep their identity.
    if config.repeats > 1:
        shared["repeats"] = config.repeats
    if config.fixed_views:
        shared["views"] = config.fixed_views
    for part in (*made.captions(config, tokenize), *made.audio(config)):
        shared |= part.identity()
    if not config.mixture:
        (source,) = sources
        # The order comes from a library: should a release draw it otherwise, we notice.
        first = [source.record(i) for i in range(min(16, len(source)))]
        return {**source.identity(config), **shared, "first": first}
    first = {}
    for group in plan.groups:
        positions = [group.order.locate(i) for i in range(16)]
        first[group.media] = [
            [group.members[part], sources[group.members[part]].record(k)] for part, k in positions
        ]
    sets = {
        source.component.name: {
            **source.identity(config),
            "dataset": source.number,
            "media": source.component.media,
        }
        for source in sources
    }
    for group in plan.groups:
        for part, member in enumerate(group.members):
            sets[sources[member].component.name]["share"] = str(group.order.share(part))
    media = {
        group.media: {
            "batch": group.batch,
            "frames": group.clip.frames,
            "size": group.clip.resolution,
            "steps": str(plan.steps.share(i)),
        }
        for i, group in enumerate(plan.groups)
    }
    merge = config.merge_classes
    return {**shared, "mixture": sets, "media": media, "merge_classes": merge, "first": first}
