"""One step of the training stream: its records read, decoded, and cropped into the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines import augment, features, sampling, schema, sound
from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.dataset import Dataset, FrameBuffer, UnreadableRecordError, label_of
from data_pipelines.features import Features
from data_pipelines.mixture import Component, Group, Plan
from data_pipelines.prefetch import RowPool

Batch = dict[str, np.ndarray]
Tokenize = Callable[[list[str]], np.ndarray]  # n texts -> (n, L) int32
Rows = Mapping[str, np.ndarray]  # the rows of a batch that one record fills

TEXTS = ("off", "first", "random")
# Draws that do not belong to the pixels have a stream of their own: the high word of the counter.
_TEXT_COUNTER = [0, 0, 0, 1]
_AUDIO_COUNTER = [0, 0, 0, 2]


def check_text(text: str) -> None:
    """ValueError for an unknown way to choose captions."""
    if text not in TEXTS:
        raise ValueError(f"unknown config.data.text {text!r}; known: {', '.join(TEXTS)}")


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
            cached = Features.open(component.features, dataset, config.reader)
        return cls(number, component, dataset, transform, labels, labelled, order, cached)

    def __len__(self) -> int:
        return len(self.dataset)

    def record(self, draw: int) -> int:
        """The record number of a draw."""
        return int(self.order[draw])

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
      frames: the sampled ones, (H, W, 3) uint8 each.
      audio: its sound, None without or when it is off.
      audio_start_us: where the windows of its sound begin; None: each has its own draw.
      features: its cached arrays, empty when off.
      substituted: whether it stands in for another.
    """

    index: int
    record: schema.Record
    frames: list[np.ndarray]
    audio: schema.Audio | None
    audio_start_us: int | None
    features: Rows
    substituted: bool


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Step -> the batch of one process. Picklable, for worker processes."""

    config: DataConfig
    sources: Sequence[Source]
    plan: Plan
    process: int
    processes: int
    pool: RowPool
    tokenize: Tokenize | None
    buffer: FrameBuffer = dataclasses.field(default_factory=FrameBuffer)

    def __call__(self, step: int) -> Batch:
        repeats, slot = self.config.repeats, self.plan.slot(step)
        group, rows = slot.group, slot.group.batch // self.processes
        first, position = self.process * rows, slot.position + self.process * rows
        clip = group.clip
        # Crops are written straight into their rows: the pixels are never copied.
        arrays: Batch = {"video": np.empty((rows, clip.frames, clip.size, clip.size, 3), np.uint8)}
        if self._has_audio(group):
            samples = sound.length(self.config.audio_seconds)
            arrays["audio"] = np.zeros((rows, samples), np.int16)
            arrays["audio_valid"] = np.zeros(rows, np.int32)
        cached = self.sources[group.members[0]].features
        for name, (shape, dtype) in (cached.shapes if cached else {}).items():
            arrays[f"{features.PREFIX}{name}"] = np.empty((rows, *shape), dtype)

        def fill(number: int) -> tuple[int, int, int, bool, list[str | None]]:
            own = slice(number * repeats, (number + 1) * repeats)
            draw = slot.record + (first + own.start) // repeats
            part = {name: array[own] for name, array in arrays.items()}
            return self._fill(group, draw, position + own.start, part)

        filled = self.pool.map(fill, range(rows // repeats))
        index, label, dataset, substituted, captions = zip(*filled, strict=True)
        positions = np.arange(position, position + rows) & 0xFFFFFFFF
        batch: Batch = {
            **arrays,
            "label": np.repeat(np.array(label, np.int32), repeats),
            "index": np.repeat(np.array(index, np.int32), repeats),
            "position": positions.astype(np.uint32),
            "substituted": np.array(sum(substituted), np.int32),
        }
        if self.config.mixture:
            batch["dataset"] = np.repeat(np.array(dataset, np.int32), repeats)
        if self.config.text != "off":
            batch.update(self._text([caption for own in captions for caption in own]))
        return batch

    def _fill(
        self, group: Group, draw: int, position: int, out: Rows
    ) -> tuple[int, int, int, bool, list[str | None]]:
        """The examples of one record: the first of `repeats` rows of `out` has `position`.

        As in the references, the frames are chosen and decoded once, crops and flips drawn for
        every example.

        Returns:
          (record number, label, data set, whether it stands in for another, captions).
        """
        part, number = group.order.place(draw)
        source = self.sources[group.members[part]]
        rng = self._generator(position)
        clip = self._read(group, source, source.record(number), rng)
        captions = []
        for repeat, row in enumerate(out["video"]):
            rng = self._generator(position + repeat) if repeat else rng
            source.transform(clip.frames, rng, out=row)
            if self.config.text != "off":
                captions.append(self._caption(clip.record, position + repeat))
            if clip.audio is not None:
                draws = self._generator(position + repeat, _AUDIO_COUNTER)
                window = out["audio"][repeat]
                valid = sound.cut(clip.audio, clip.audio_start_us, draws, window)
                out["audio_valid"][repeat] = valid
        for name, array in clip.features.items():
            out[f"{features.PREFIX}{name}"][:] = array
        return clip.index, source.label(clip.record), source.number, clip.substituted, captions

    def _has_audio(self, group: Group) -> bool:
        return self.config.audio_seconds > 0 and group.media != "image"

    def _generator(self, position: int, counter: Any = None) -> np.random.Generator:
        # Counter-based, so that neighbouring positions are independent without a long warm-up.
        key = [self.config.seed, position]
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _read(self, group: Group, source: Source, index: int, rng: np.random.Generator) -> _Clip:
        """The record, or under `substitute` the next readable one in index order."""
        clip, dataset, tries = group.clip, source.dataset, 0
        while True:
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
                if self._has_audio(group):
                    audio, start = self._sound(source, index, record, int(wanted[0]))
                arrays = {}
                if source.features is not None:
                    arrays = source.features.read(index, dataset.address(index, record))
                return _Clip(index, record, frames, audio, start, arrays, tries > 0)
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
