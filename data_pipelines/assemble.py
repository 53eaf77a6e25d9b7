"""One step of the training stream: its records read, decoded, and cropped into the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines import augment, sampling, schema
from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.dataset import Dataset, FrameBuffer, UnreadableRecordError, label_of
from data_pipelines.mixture import Component, Group, Plan
from data_pipelines.prefetch import RowPool

Batch = dict[str, np.ndarray]
Tokenize = Callable[[list[str]], np.ndarray]  # n texts -> (n, L) int32

TEXTS = ("off", "first", "random")
# Draws that do not belong to the pixels have a stream of their own: the high word of the counter.
_TEXT_COUNTER = [0, 0, 0, 1]


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
    """

    number: int
    component: Component
    dataset: Dataset
    transform: augment.TrainTransform
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
        return cls(number, component, dataset, transform, labels, labelled, order)

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
        return identity


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
        video = np.empty((rows, clip.frames, clip.size, clip.size, 3), np.uint8)

        def fill(number: int) -> tuple[int, int, int, bool, list[str | None]]:
            own = slice(number * repeats, (number + 1) * repeats)
            draw = slot.record + (first + own.start) // repeats
            return self._fill(group, draw, position + own.start, video[own])

        filled = self.pool.map(fill, range(rows // repeats))
        index, label, dataset, substituted, captions = zip(*filled, strict=True)
        positions = np.arange(position, position + rows) & 0xFFFFFFFF
        batch: Batch = {
            "video": video,
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
        self, group: Group, draw: int, position: int, out: np.ndarray
    ) -> tuple[int, int, int, bool, list[str | None]]:
        """The examples of one record: `out` (repeats, T, H, W, 3) begins at `position`.

        As in the references, the frames are chosen and decoded once, crops and flips drawn for
        every example.

        Returns:
          (record number, label, data set, whether it stands in for another, captions).
        """
        part, number = group.order.place(draw)
        source = self.sources[group.members[part]]
        rng = self._generator(position)
        index, record, frames, substituted = self._read(group, source, source.record(number), rng)
        captions = []
        for repeat, row in enumerate(out):
            rng = self._generator(position + repeat) if repeat else rng
            source.transform(frames, rng, out=row)
            if self.config.text != "off":
                captions.append(self._caption(record, position + repeat))
        return index, source.label(record), source.number, substituted, captions

    def _generator(self, position: int, counter: Any = None) -> np.random.Generator:
        # Counter-based, so that neighbouring positions are independent without a long warm-up.
        key = [self.config.seed, position]
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _read(
        self, group: Group, source: Source, index: int, rng: np.random.Generator
    ) -> tuple[int, schema.Record, list[np.ndarray], bool]:
        """The record, or under `substitute` the next readable one in index order."""
        clip, dataset, tries = group.clip, source.dataset, 0
        while True:
            try:
                record = dataset.load(index)
                sample = sampling.TRAIN[clip.sampling]
                wanted = sample(len(record.frames), clip.frames, clip.stride, rng)
                frames = dataset.frames(index, record, wanted, self.buffer)
                return index, record, frames, tries > 0
            except UnreadableRecordError:
                tries += 1
                if self.config.reader.on_corrupt == "raise" or tries >= len(dataset):
                    raise
                index = (index + 1) % len(dataset)

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
