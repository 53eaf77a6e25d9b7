"""From records to batches: the endless training stream and the finite evaluation pass.

The training stream is a pure function of (settings, position). Positions count examples over all
hosts; step s of a run holds positions s * B to (s + 1) * B - 1, host h of n takes every n-th of
them. So the step number alone is the data position of a checkpoint, on any number of hosts,
threads or worker processes.

Order of operations (each reason was measured): shuffle and repeat act on record numbers, then every
example is read, decoded and augmented by its position alone, then hosts take their slice, and
batches are formed before anything becomes parallel. Nothing is filtered, ever: a dropped example
would shift all later positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from data_pipelines import augment, sampling, schema, transforms
from data_pipelines.config import STREAM_VERSION, ClipConfig, DataConfig, ViewConfig
from data_pipelines.dataset import Dataset, UnreadableRecordError, label_of, open_dataset
from data_pipelines.prefetch import check_reader, iterate

Batch = dict[str, np.ndarray]
Example = dict[str, Any]  # arrays and numpy scalars


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    """(position, record number) -> one training example. Picklable, for worker processes."""

    dataset: Dataset
    config: DataConfig
    transform: augment.TrainTransform

    def __call__(self, position: int, index: int) -> Example:
        # Counter-based, so that neighbouring positions are independent without a long warm-up.
        rng = np.random.Generator(np.random.Philox(key=[self.config.seed, position]))
        index, record, frames, substituted = self._read(index, rng)
        return {
            "video": self.transform(frames, rng),
            "label": label_of(record),
            "index": np.int32(index),
            "position": np.uint32(position & 0xFFFFFFFF),
            "substituted": np.bool_(substituted),
        }

    def _read(
        self, index: int, rng: np.random.Generator
    ) -> tuple[int, schema.Record, list[np.ndarray], bool]:
        """The record, or under `substitute` the next readable one in index order."""
        clip, tries = self.config.clip, 0
        while True:
            try:
                record = self.dataset.load(index)
                sample = sampling.TRAIN[clip.sampling]
                wanted = sample(len(record.frames), clip.frames, clip.stride, rng)
                return index, record, self.dataset.frames(index, record, wanted), tries > 0
            except UnreadableRecordError:
                tries += 1
                if self.config.reader.on_corrupt == "raise" or tries >= len(self.dataset):
                    raise
                index = (index + 1) % len(self.dataset)


class TrainStream(Iterator[Batch]):
    """Batches of one process, endless, starting at any step.

    Args:
      config: what the stream is.
      process, processes: which of how many hosts this is.
      start_step: first step to deliver.

    Raises:
      ValueError: the settings contradict each other or the data set.
    """

    def __init__(
        self, config: DataConfig, *, process: int = 0, processes: int = 1, start_step: int = 0
    ):
        _check_clip(config.clip, sampling.TRAIN)
        check_reader(config.reader)
        if config.global_batch % processes:
            raise ValueError(
                f"config.data.global_batch = {config.global_batch} cannot be split evenly over "
                f"{processes} processes"
            )
        self.config = config
        self.dataset = open_dataset(config.train, config.split, check_crc=config.reader.check_crc)
        self.transform = augment.TrainTransform(
            size=config.clip.size,
            crop=config.crop,
            flip=augment.resolve_flip(config.flip, self.dataset.manifest),
        )
        self.substitutions = 0
        order: Any = grain.MapDataset.range(len(self.dataset))
        order = order.seed(config.seed).shuffle().repeat(None)
        self.identity = {
            "records": self.dataset.manifest.fingerprint(config.split),
            "split": config.split,
            "seed": config.seed,
            "global_batch": config.global_batch,
            "clip": dataclasses.asdict(config.clip),
            "crop": self.transform.crop,
            "flip": self.transform.flip,
            "version": STREAM_VERSION,
            # The order comes from a library: should a release draw it otherwise, we notice.
            "first": [int(order[i]) for i in range(min(16, len(self.dataset)))],
        }
        examples = order.map_with_index(_TrainExample(self.dataset, config, self.transform))
        first = start_step * config.global_batch + process
        local = examples.slice(slice(first, None, processes))
        self._batches = iterate(local, config.global_batch // processes, config.reader)

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides which pixels come at which position."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.substitutions += int(batch.pop("substituted").sum())
        if self.substitutions > self.config.reader.max_substitutions:
            raise RuntimeError(
                f"{self.substitutions} unreadable records were substituted in this run, the limit "
                f"config.data.reader.max_substitutions is "
                f"{self.config.reader.max_substitutions}; find them with `python -m "
                f"data_pipelines verify {self.config.train}`"
            )
        return batch

    def close(self) -> None:
        """Stops the reading threads and worker processes."""
        self._batches.close()


@dataclasses.dataclass(frozen=True)
class _Views:
    """Place in the pass -> all views of one record. Picklable, for worker processes."""

    dataset: Dataset
    config: ViewConfig

    def __call__(self, place: int) -> Example:
        config, clip = self.config, self.config.clip
        index = min(place, len(self.dataset) - 1)
        valid, unreadable = place < len(self.dataset), False
        count = config.segments * config.crops
        try:
            record = self.dataset.load(index)
            video = self._views(index, record)
            label = label_of(record)
        except UnreadableRecordError:
            if config.reader.on_corrupt == "raise":
                raise
            shape = (count, clip.frames, clip.size, clip.size, 3)
            video, label = np.zeros(shape, np.uint8), np.int32(-1)
            valid, unreadable = False, valid
        return {
            "video": video,
            "label": np.full(count, label, np.int32),
            "index": np.full(count, index, np.int32),
            "view": np.arange(count, dtype=np.int32),
            "valid": np.full(count, valid),
            "unreadable": np.bool_(unreadable),
        }

    def _views(self, index: int, record: schema.Record) -> np.ndarray:
        """(segments * crops, T, H, W, 3) uint8, segment-major."""
        config, clip = self.config, self.config.clip
        wanted = sampling.VIEWS[clip.sampling](
            len(record.frames), clip.frames, clip.stride, config.segments
        )
        frames = self.dataset.frames(index, record, wanted.ravel())
        resized: dict[int, np.ndarray] = {}
        for number, frame in zip(wanted.ravel(), frames, strict=True):
            if int(number) not in resized:
                resized[int(number)] = transforms.resize_short_side(frame, clip.size)
        shape = resized[int(wanted[0, 0])].shape
        boxes = transforms.crop_boxes(shape[0], shape[1], clip.size, config.crops)
        out = np.empty((len(wanted) * len(boxes), clip.frames, clip.size, clip.size, 3), np.uint8)
        for segment, numbers in enumerate(wanted):
            pictures = [resized[int(number)] for number in numbers]
            for crop, box in enumerate(boxes):
                row = out[segment * len(boxes) + crop]
                transforms.crop_resize(pictures, box, clip.size, out=row)
        return out


class ViewPass(Iterator[Batch]):
    """One evaluation pass of one process over a split, every view of every record once.

    The last batch is padded with `valid` = False so that all hosts take the same number of steps.
    A record that cannot be read raises, or under `substitute` is marked invalid and counted in
    `skipped`.
    """

    def __init__(
        self,
        directory: str,
        split: str,
        config: ViewConfig,
        *,
        process: int = 0,
        processes: int = 1,
    ):
        _check_clip(config.clip, sampling.VIEWS)
        check_reader(config.reader)
        if config.batch % processes:
            raise ValueError(
                f"an evaluation batch of {config.batch} videos cannot be split evenly over "
                f"{processes} processes"
            )
        self.config = config
        self.dataset = open_dataset(directory, split, check_crc=config.reader.check_crc)
        self.steps = -(-len(self.dataset) // config.batch)
        self.skipped = 0
        places = grain.MapDataset.range(self.steps * config.batch)
        local = places.slice(slice(process, None, processes)).map(_Views(self.dataset, config))
        self._batches = iterate(local, config.batch // processes, config.reader)

    def __len__(self) -> int:
        return self.steps

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.skipped += int(batch.pop("unreadable").sum())
        return {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in batch.items()}

    def close(self) -> None:
        """Stops the reading threads and worker processes."""
        self._batches.close()


def _check_clip(clip: ClipConfig, known: dict[str, Callable[..., Any]]) -> None:
    if clip.sampling not in known:
        raise ValueError(f"unknown clip sampling {clip.sampling!r}; known: {', '.join(known)}")
    if min(clip.frames, clip.stride, clip.size) < 1:
        raise ValueError(f"clip frames, stride and size must be positive, found {clip}")
