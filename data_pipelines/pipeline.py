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
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
import simplejpeg
from absl import flags

from data_pipelines import sampling, schema, transforms
from data_pipelines.config import STREAM_VERSION, ClipConfig, DataConfig, ReaderConfig, ViewConfig
from data_pipelines.manifest import Manifest, open_split
from data_pipelines.records import CorruptRecordError, RecordSource

Batch = dict[str, np.ndarray]
Example = dict[str, Any]  # arrays and numpy scalars

CORRUPT_POLICIES = ("raise", "substitute")


class UnreadableRecordError(ValueError):
    """A record that cannot become a clip; says which one and why."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One opened split: its description and its records."""

    manifest: Manifest
    split: str
    source: RecordSource

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> schema.Record:
        """Record number `index`; UnreadableRecordError with its address when it is damaged."""
        try:
            record = schema.decode(self.source[index])
        except CorruptRecordError as error:
            raise UnreadableRecordError(str(error)) from error
        except schema.SchemaError as error:
            raise UnreadableRecordError(f"{self.address(index)}: {error}") from error
        wrong = [label for label in record.labels if not 0 <= label < len(self.classes)]
        if wrong and self.classes:
            raise UnreadableRecordError(
                f"{self.address(index, record)}: label {wrong[0]} is outside the class list of "
                f"{len(self.classes)} names; repeat the ingest, or fix the manifest's classes"
            )
        return record

    def frames(self, index: int, record: schema.Record, wanted: np.ndarray) -> list[np.ndarray]:
        """Decoded frames (H, W, 3) uint8 for the numbers in `wanted`, each decoded once."""
        decoded: dict[int, np.ndarray] = {}
        for frame in sorted({int(number) for number in wanted}):
            try:
                decoded[frame] = simplejpeg.decode_jpeg(record.frames[frame], colorspace="RGB")
            except ValueError as error:
                raise UnreadableRecordError(
                    f"{self.address(index, record)}: frame {frame} is not a readable JPEG ({error})"
                ) from error
        return [decoded[int(frame)] for frame in wanted]

    def address(self, index: int, record: schema.Record | None = None) -> str:
        shard, number, offset = self.source.locate(index)
        name = f" ({record.media_id})" if record is not None and record.media_id else ""
        return f"{shard}: record {number} at offset {offset}{name}"


def open_dataset(directory: str, split: str, *, check_crc: bool = True) -> Dataset:
    """Opens a split made by the ingest; one clear error for everything that is wrong with it."""
    if not directory:
        raise ValueError(
            "no data directory given; make one with `python -m data_pipelines.ingest` and pass it "
            "as --config.data.train=DIR"
        )
    manifest, source = open_split(directory, split, check_crc=check_crc)
    return Dataset(manifest, split, source)


def label_of(record: schema.Record) -> np.int32:
    """The class index, -1 without one; multi-label records give their first."""
    return np.int32(record.labels[0] if record.labels else -1)


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    """(position, record number) -> one training example. Picklable, for worker processes."""

    dataset: Dataset
    config: DataConfig
    flip: bool

    def __call__(self, position: int, index: int) -> Example:
        clip = self.config.clip
        # Counter-based, so that neighbouring positions are independent without a long warm-up.
        rng = np.random.Generator(np.random.Philox(key=[self.config.seed, position]))
        index, record, frames, substituted = self._read(index, rng)
        height, width = frames[0].shape[:2]
        antialias = self.config.crop != "random_resized"
        if self.config.crop == "multiscale":
            box = transforms.multiscale_crop(height, width, clip.size, rng)
        elif self.config.crop == "random_resized":
            box = transforms.random_resized_crop(height, width, rng)
        else:
            side = min(height, width)
            box = transforms.center_box(height, width, side)
        flip = self.flip and bool(rng.random() < 0.5)
        return {
            "video": transforms.crop_resize(frames, box, clip.size, antialias=antialias, flip=flip),
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
        _check_reader(config.reader)
        if config.crop not in ("multiscale", "random_resized", "center"):
            raise ValueError(
                f"unknown config.data.crop {config.crop!r}; known: multiscale, random_resized, "
                "center"
            )
        if config.global_batch % processes:
            raise ValueError(
                f"config.data.global_batch = {config.global_batch} cannot be split evenly over "
                f"{processes} processes"
            )
        self.config = config
        self.dataset = open_dataset(config.train, config.split, check_crc=config.reader.check_crc)
        self.flip = _resolve_flip(config.flip, self.dataset.manifest)
        self.substitutions = 0
        order: Any = grain.MapDataset.range(len(self.dataset))
        order = order.seed(config.seed).shuffle().repeat(None)
        self.identity = {
            "records": self.dataset.manifest.fingerprint(config.split),
            "split": config.split,
            "seed": config.seed,
            "global_batch": config.global_batch,
            "clip": dataclasses.asdict(config.clip),
            "crop": config.crop,
            "flip": self.flip,
            "version": STREAM_VERSION,
            # The order comes from a library: should a release draw it otherwise, we notice.
            "first": [int(order[i]) for i in range(min(16, len(self.dataset)))],
        }
        examples = order.map_with_index(_TrainExample(self.dataset, config, self.flip))
        first = start_step * config.global_batch + process
        local = examples.slice(slice(first, None, processes))
        self._batches = _iterate(local, config.global_batch // processes, config.reader)

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
                f"data_pipelines.ingest --verify --out {self.config.train}`"
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
        _check_reader(config.reader)
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
        self._batches = _iterate(local, config.batch // processes, config.reader)

    def __len__(self) -> int:
        return self.steps

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.skipped += int(batch.pop("unreadable").sum())
        return {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in batch.items()}

    def close(self) -> None:
        """Stops the reading threads and worker processes."""
        self._batches.close()


def _iterate(examples: Any, batch: int, reader: ReaderConfig) -> Any:
    """A parallel iterator over full batches of a MapDataset."""
    batches = examples.batch(batch, drop_remainder=True)
    # The default buffer of 500 elements would be 500 batches.
    options = grain.ReadOptions(
        num_threads=reader.threads, prefetch_buffer_size=max(reader.threads, reader.buffer)
    )
    stream = batches.to_iter_dataset(options)
    if reader.workers > 0:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=reader.workers),
            worker_init_fn=functools.partial(_end_with_parent, os.getpid()),
        )
    return iter(stream)


def _end_with_parent(parent: int, worker: int, workers: int) -> None:
    """In a worker process: exit when the parent is gone, however it died.

    The parent's number comes from the parent: a worker that asked for it here would never end if
    the parent died while the worker was still starting.
    """
    del worker, workers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _resolve_flip(flip: str, manifest: Manifest) -> bool:
    if flip not in ("off", "on", "auto"):
        raise ValueError(f"unknown config.data.flip {flip!r}; known: off, on, auto")
    if flip == "on" and manifest.flip_changes_label:
        raise ValueError(
            f"config.data.flip=on, but the labels of {manifest.name!r} change under a flip (its "
            "manifest says so); use auto or off"
        )
    return flip == "on" or (flip == "auto" and not manifest.flip_changes_label)


def _check_clip(clip: ClipConfig, known: dict[str, Callable[..., Any]]) -> None:
    if clip.sampling not in known:
        raise ValueError(f"unknown clip sampling {clip.sampling!r}; known: {', '.join(known)}")
    if min(clip.frames, clip.stride, clip.size) < 1:
        raise ValueError(f"clip frames, stride and size must be positive, found {clip}")


def _check_reader(reader: ReaderConfig) -> None:
    if reader.on_corrupt not in CORRUPT_POLICIES:
        raise ValueError(
            f"unknown reader.on_corrupt {reader.on_corrupt!r}; known: {', '.join(CORRUPT_POLICIES)}"
        )
    if reader.threads < 1 or reader.buffer < 1 or reader.workers < 0:
        raise ValueError(f"reader needs threads >= 1, buffer >= 1, workers >= 0; found {reader}")
