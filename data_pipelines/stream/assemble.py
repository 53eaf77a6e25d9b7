"""One step of the training stream: its records read, decoded, and cropped into the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.clips import augment, sampling
from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.records import schema
from data_pipelines.records.dataset import Dataset, FrameBuffer, UnreadableRecordError, label_of
from data_pipelines.stream.mixture import Component, Plan
from data_pipelines.stream.parts import audio as sound
from data_pipelines.stream.parts import features
from data_pipelines.stream.parts.features import Features
from data_pipelines.stream.prefetch import RowPool

Batch = dict[str, np.ndarray]
Tokenize = Callable[[list[str]], np.ndarray]  # n texts -> (n, L) int32
Rows = Mapping[str, np.ndarray]  # the rows of a batch that one record fills

TEXTS = ("off", "first", "random")
# Draws that do not belong to the pixels have a stream of their own: the high word of the counter.
_TEXT_COUNTER = [0, 0, 0, 1]
_AUDIO_COUNTER = [0, 0, 0, 2]


def wrapped(places: np.ndarray) -> np.ndarray:
    """Positions as a batch has them: uint32, modulo 2**32."""
    return (np.asarray(places, np.int64) & 0xFFFFFFFF).astype(np.uint32)


def check_text(text: str) -> None:
    """ValueError for an unknown way to choose captions."""
    if text not in TEXTS:
        raise ValueError(f"unknown config.data.text {text!r}; known: {', '.join(TEXTS)}")


def check_views(config: DataConfig) -> None:
    """ValueError for a number of views that is none, or that repeats contradict."""
    if config.views < 0:
        raise ValueError(
            f"config.data.views = {config.views}: expected a number of views, or 0 for random ones"
        )
    if config.views and config.repeats > 1:
        # The frames of repeats are drawn once, so none but the first would be a view of its own.
        raise ValueError(
            f"config.data.views = {config.views} with config.data.repeats = {config.repeats}: a "
            "pass shows one view of each record; set config.data.repeats to 1 and train for more "
            "epochs, or config.data.views to 0"
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """One set of the stream, endlessly shuffled.

    Attributes:
      number: the `dataset` of its examples.
      labels: its class numbers -> those of the stream, None where they are the same.
      labelled: whether the stream has labels.
      order: n-th draw -> record number; grain's, random access.
      features: cached arrays of its records, None when off.
    """

    number: int
    component: Component
    dataset: Dataset
    transform: augment.TrainTransform
    labels: np.ndarray | None
    labelled: bool
    order: Any
    features: Features | None = None

    @classmethod
    def of(
        cls,
        number: int,
        component: Component,
        dataset: Dataset,
        labels: np.ndarray | None,
        labelled: bool,
        config: DataConfig,
    ) -> Source:
        transform = augment.TrainTransform(
            size=config.clip_of(component.media).size,
            crop=component.crop,
            flip=augment.resolve_flip(component.flip, dataset.manifest),
            config=config.augment,
        )
        # Sets of the same length must not come in the same order.
        seed = config.seed
        if number:
            seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        order: Any = grain.MapDataset.range(len(dataset))
        order = order.seed(seed).shuffle().repeat(None)
        cached = None
        if component.features:
            cached = Features.open(component.features, dataset, config.reader, views=config.views)
        return cls(number, component, dataset, transform, labels, labelled, order, cached)

    def __len__(self) -> int:
        return len(self.dataset)

    def record(self, draw: int) -> int:
        """The record number of a draw."""
        return int(self.order[draw])

    def passes(self, draw: int) -> int:
        """Passes over the set that were complete before a draw."""
        return draw // len(self)

    def label(self, record: schema.Record) -> int:
        label = int(label_of(record)) if self.labelled else -1
        return label if label < 0 or self.labels is None else int(self.labels[label])

    def identity(self) -> dict[str, Any]:
        """What decides the set's share of the stream's pixels, as JSON values."""
        identity: dict[str, Any] = {
            "records": self.dataset.manifest.fingerprint(self.component.split),
            "split": self.component.split,
            "crop": self.transform.crop,
            "flip": self.transform.flip,
        }
        if self.transform.config != AugmentConfig():  # what is off is not mentioned
            identity["augment"] = dataclasses.asdict(self.transform.config)
        if self.features is not None:
            identity["features"] = dict(self.features.identity)
        return identity

    def check_media(self, index: int, record: schema.Record) -> None:
        """ValueError for a record of another media type than its set was given as."""
        # Records that another program wrote do not say that their one frame is a picture.
        one_frame = self.component.media == "image" and len(record.frames) == 1
        if record.media_type != self.component.media and not one_frame:
            name = self.component.name or "NAME"
            raise ValueError(
                f"{self.dataset.address(index, record)}: is {_article(record.media_type)} in a "
                f"set of media={self.component.media}; give the set as "
                f'config.data.mixture="{name}={self.component.directory}; '
                f'media={record.media_type}", and pictures and videos as sets of their own'
            )


def _article(media: str) -> str:
    return f"{'an' if media == 'image' else 'a'} {media}"


@dataclasses.dataclass(frozen=True)
class _Clip:
    """What was read of one record.

    Attributes:
      place: what the random draws of its first example come from.
      rng: those draws, after the frames.
      frames: the sampled ones, (H, W, 3) uint8 each.
      audio: its sound, None without or when it is off.
      audio_start_us: where the windows of its sound begin; None: each has its own draw.
      features: its cached arrays, empty when off.
      substituted: whether it stands in for another.
    """

    index: int
    record: schema.Record
    place: int
    rng: np.random.Generator
    frames: list[np.ndarray]
    audio: schema.Audio | None
    audio_start_us: int | None
    features: Rows
    substituted: bool


@dataclasses.dataclass(frozen=True)
class Example:
    """What of the examples of one record is not in their rows.

    Attributes:
      index: record number.
      place: what the random draws of the first example came from; its position, or with
        config.views index * views + view.
      dataset: number of the set.
      substituted: whether the record stands in for another.
      captions: one of each example, empty when off.
    """

    index: int
    label: int
    place: int
    dataset: int
    substituted: bool
    captions: Sequence[str | None]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Makes the examples of one record, from its number and what their random draws come from.

    Picklable, for worker processes.
    """

    config: DataConfig
    buffer: FrameBuffer = dataclasses.field(default_factory=FrameBuffer)

    def fill(self, source: Source, index: int, out: Rows, *, place: int, view: int = 0) -> Example:
        """Writes the examples of a record to the `repeats` rows of `out`.

        As in the references, the frames are chosen and decoded once, crops and flips drawn for
        every example.

        Args:
          place: position of the first example. With config.views the draws come from
            index * views + view instead, whatever the position.
          view: of the record, below config.views.
        """
        clip = self._read(source, index, place, view)
        captions, rng = [], clip.rng
        for repeat, row in enumerate(out["video"]):
            rng = self._generator(clip.place + repeat) if repeat else rng
            source.transform(clip.frames, rng, out=row)
            if self.config.text != "off":
                captions.append(self._caption(clip.record, clip.place + repeat))
            if clip.audio is not None:
                draws = self._generator(clip.place + repeat, _AUDIO_COUNTER)
                window = out["audio"][repeat]
                valid = sound.cut(clip.audio, clip.audio_start_us, draws, window)
                out["audio_valid"][repeat] = valid
        for name, array in clip.features.items():
            out[f"{features.PREFIX}{name}"][:] = array
        label = source.label(clip.record)
        return Example(clip.index, label, clip.place, source.number, clip.substituted, captions)

    def has_audio(self, source: Source) -> bool:
        """Whether the examples of a set have sound."""
        return self.config.audio_seconds > 0 and source.component.media != "image"

    def _generator(self, position: int, counter: Any = None) -> np.random.Generator:
        # Counter-based, so that neighbouring positions are independent without a long warm-up.
        key = [self.config.seed, position]
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _read(self, source: Source, index: int, place: int, view: int) -> _Clip:
        """The record, or under `substitute` the next readable one in index order."""
        clip, dataset = self.config.clip_of(source.component.media), source.dataset
        rng, views, tries = self._generator(place), self.config.views, 0
        while True:
            if views:  # of the record that is read, so that its cached arrays fit
                place = index * views + view
                rng = self._generator(place)
            try:
                record = dataset.load(index)
                source.check_media(index, record)
                try:
                    wanted = sampling.train_frames(
                        clip.sampling,
                        record.timestamps_us,
                        record.fps,
                        clip.frames,
                        clip.stride,
                        rng,
                    )
                except ValueError as error:
                    raise ValueError(f"{dataset.address(index, record)}: {error}") from error
                frames = dataset.frames(index, record, wanted, self.buffer)
                audio, start = None, None
                if self.has_audio(source):
                    audio, start = self._sound(source, index, record, int(wanted[0]))
                arrays = {}
                if source.features is not None:
                    where = dataset.address(index, record)
                    arrays = source.features.read(index, where, view)
                return _Clip(index, record, place, rng, frames, audio, start, arrays, tries > 0)
            except UnreadableRecordError:
                tries += 1
                if self.config.reader.on_corrupt == "raise" or tries >= len(dataset):
                    raise
                index = (index + 1) % len(dataset)

    def _sound(
        self, source: Source, index: int, record: schema.Record, first_frame: int
    ) -> tuple[schema.Audio | None, int | None]:
        """The sound of a record, and where the windows of it begin (`_Clip`)."""
        audio = source.dataset.audio(index, record)
        if audio is None:
            return None, None
        sound.check_rate(audio, source.dataset.address(index, record))
        return audio, sound.start_of(record, first_frame, self.config.audio_window)

    def _caption(self, record: schema.Record, position: int) -> str | None:
        # Sets that others wrote hold captions that say nothing; there is no text in them.
        captions = [caption for caption in record.captions if caption.strip()]
        if not captions:
            return None
        if self.config.text == "first":
            return captions[0]
        rng = self._generator(position, _TEXT_COUNTER)
        return captions[int(rng.integers(len(captions)))]


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Step -> the batch of one process. Picklable, for worker processes."""

    examples: Examples
    sources: Sequence[Source]
    plan: Plan
    process: int
    processes: int
    pool: RowPool
    tokenize: Tokenize | None

    @property
    def config(self) -> DataConfig:
        return self.examples.config

    def __call__(self, step: int) -> Batch:
        repeats, slot = self.config.repeats, self.plan.slot(step)
        group, rows = slot.group, slot.group.batch // self.processes
        first, position = self.process * rows, slot.position + self.process * rows
        clip = group.clip
        # Crops are written straight into their rows: the pixels are never copied.
        arrays: Batch = {"video": np.empty((rows, clip.frames, clip.size, clip.size, 3), np.uint8)}
        if self.examples.has_audio(self.sources[group.members[0]]):
            samples = sound.length(self.config.audio_seconds)
            arrays["audio"] = np.zeros((rows, samples), np.int16)
            arrays["audio_valid"] = np.zeros(rows, np.int32)
        cached = self.sources[group.members[0]].features
        for name, (shape, dtype) in (cached.shapes if cached else {}).items():
            arrays[f"{features.PREFIX}{name}"] = np.empty((rows, *shape), dtype)

        def fill(number: int) -> Example:
            own = slice(number * repeats, (number + 1) * repeats)
            draw = slot.record + (first + own.start) // repeats
            part, number = group.order.place(draw)
            source = self.sources[group.members[part]]
            out = {name: array[own] for name, array in arrays.items()}
            index, view = source.record(number), source.passes(number) % max(self.config.views, 1)
            return self.examples.fill(source, index, out, place=position + own.start, view=view)

        filled = self.pool.map(fill, range(rows // repeats))
        columns = {
            name: np.repeat(np.array([getattr(each, name) for each in filled], np.int32), repeats)
            for name in ("label", "index", "dataset")
        }
        places = np.concatenate([np.arange(each.place, each.place + repeats) for each in filled])
        batch: Batch = {
            **arrays,
            "label": columns["label"],
            "index": columns["index"],
            "position": wrapped(places),
            "substituted": np.array(sum(each.substituted for each in filled), np.int32),
        }
        if self.config.mixture:
            batch["dataset"] = columns["dataset"]
        if self.config.text != "off":
            batch.update(self._text([caption for each in filled for caption in each.captions]))
        return batch

    def _text(self, captions: list[str | None]) -> Batch:
        texts = [caption or "" for caption in captions]
        has_text = np.array([bool(caption) for caption in captions])
        if self.tokenize is None:
            return {"caption": np.array(texts, np.str_), "has_text": has_text}
        tokens = np.asarray(self.tokenize(texts))
        if tokens.ndim != 2 or len(tokens) != len(texts) or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"the tokeniser gave {tokens.dtype} {tokens.shape} for {len(texts)} texts; "
                f"expected integers of shape ({len(texts)}, L)"
            )
        return {"text": tokens.astype(np.int32), "has_text": has_text}
