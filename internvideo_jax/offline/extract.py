"""Features of sliding windows over long videos, beside the records of a split.

    ivj extract --config=configs/videomae/finetune.py:size=base \\
        --checkpoint=runs/finetune --out=features/ --stride=8 --config.data.eval=shards/

Writes one companion shard (data_pipelines.records.companion) for each shard of the split. The
record of a video holds `features` (W, D) float32 and `windows_us` (W, 2) int64, start and end of
each window in microseconds from the start of the video. A window has as many frames as the model
takes. Starting the same command again keeps finished shards. Processes do not talk to each other:
--parts=4 --part=0 to 3 share the shards, on one machine or several, and the last one to end
completes the companion.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.clips import transforms
from data_pipelines.records import schema, storage
from data_pipelines.records.companion import CompanionWriter
from data_pipelines.records.dataset import Dataset, UnreadableRecordError
from data_pipelines.stream.prefetch import in_order
from internvideo_jax.inference.clips import AHEAD
from internvideo_jax.inference.features import POOLS, pooled
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.inference.steps import Program, fetched
from internvideo_jax.offline import by_shard
from internvideo_jax.offline.by_shard import ShardJob, say
from internvideo_jax.offline.seen import SeenShards
from internvideo_jax.parallel.mesh import check_batch
from internvideo_jax.protocols import Model, clip_of
from internvideo_jax.types import Params

NAME = "features"  # of the companion
CROPS = ("center", "squash")


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which windows, which pixels, which vector: what decides the features beside the weights."""

    stride: int = 8  # stored frames between the starts of two windows
    frame_stride: int = 1  # stored frames between two frames of a window
    crop: str = "center"  # of the resized frame; squash resizes both sides freely
    pool: str = "mean"  # inference/features.py
    batch: int = 32  # windows per step of one process
    # Leave a record that cannot be read without windows, and count it, instead of stopping.
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            ("stride", self.stride),
            ("frame_stride", self.frame_stride),
            ("batch", self.batch),
        ):
            if value < 1:
                raise ValueError(f"--{name}={value}: expected at least 1")
        for name, found, known in (("crop", self.crop, CROPS), ("pool", self.pool, POOLS)):
            if found not in known:
                raise ValueError(f"--{name}={found}: expected one of {', '.join(known)}")


def window_frames(n: int, T: int, r: int, stride: int) -> np.ndarray:
    """Frame numbers of all windows of T frames at distance r in a video of n frames.

    Starts are 0, stride, 2 stride, ... while the window ends inside the video. A video shorter than
    one window gives one window, padded with its last frame at that distance, as the reference pads
    its test clips.

    Returns:
      (W, T) int64, W >= 1.
    """
    span = (T - 1) * r + 1
    last = n - 1 if n >= span else (n - 1) // r * r
    starts = np.arange(0, max(n - span + 1, 1), stride)
    return np.minimum(starts[:, None] + r * np.arange(T), last)


Loaded = list[tuple[schema.Record | None, np.ndarray]]  # records with their windows (W, T)
Windowed = list[tuple[int, np.ndarray]]  # number within those, frames (T,) of a window


@dataclasses.dataclass
class Extractor:
    """A model on the devices of this process, and the split that it runs over."""

    model: Model
    params: Params
    mesh: Mesh
    dataset: Dataset
    windows: Windows
    threads: int = 4
    skipped: int = 0
    seen: PixelDigest = dataclasses.field(default_factory=PixelDigest)  # of the last shard

    def __post_init__(self) -> None:
        check_batch(self.mesh, self.windows.batch, "--batch")
        self._clip = clip_of(self.model.config)
        self._program = Program(jax.jit(pooled(self.model, self.windows.pool)), self.mesh)

    def shard(self, records: range) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of each record, in order. Batches do not reach over the end of a shard, so its
        bytes do not depend on which shards were there before."""
        loaded = [self._load(index) for index in records]
        rows = [(record, row) for record, (_, frames) in enumerate(loaded) for row in frames]
        size = self.windows.batch
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        values: list[list[np.ndarray]] = [[] for _ in records]
        self.seen = PixelDigest()
        with ThreadPoolExecutor(self.threads) as pool:
            work = functools.partial(self._video, records, loaded)
            videos = in_order(pool, work, batches, AHEAD)
            started = (self._started(records, *each) for each in videos)
            for batch, found in fetched(started):
                if (bad := by_shard.first_not_finite(found[: len(batch)])) >= 0:
                    record = batch[bad][0]
                    address = self.dataset.address(records[record], loaded[record][0])
                    raise by_shard.not_finite(address, NAME)
                for (record, _), value in zip(batch, found, strict=False):
                    values[record].append(value)
        width = self._width()
        for (record, frames), found in zip(loaded, values, strict=True):
            yield {
                "features": np.array(found, np.float32).reshape(len(found), width),
                "windows_us": _times(record, frames),
            }

    def _load(self, index: int) -> tuple[schema.Record | None, np.ndarray]:
        """A record without its images, and its windows (W, T)."""
        clip = self._clip.frames
        try:
            record = self.dataset.load(index)
        except UnreadableRecordError:
            if not self.windows.skip_unreadable:
                raise
            self.skipped += 1
            return None, np.zeros((0, clip), np.int64)
        options = self.windows
        count = len(record.frames)
        return record, window_frames(count, clip, options.frame_stride, options.stride)

    def _video(self, records: range, loaded: Loaded, batch: Windowed) -> np.ndarray:
        """(B, T, H, W, 3) uint8; rows beyond those of the batch are 0."""
        clip = self._clip
        out = np.zeros(
            (self.windows.batch, clip.frames, clip.resolution, clip.resolution, 3), np.uint8
        )
        for record, group in itertools.groupby(enumerate(batch), key=lambda item: item[1][0]):
            members = list(group)
            # Windows overlap: every frame is decoded and resized once.
            wanted = np.unique(np.concatenate([frames for _, (_, frames) in members]))
            whole = loaded[record][0]
            assert whole is not None  # noqa: S101  (it has windows)
            frames = self.dataset.frames(records[record], whole, wanted)
            pixels = {int(n): self._resize(frame) for n, frame in zip(wanted, frames, strict=True)}
            for row, (_, numbers) in members:
                for place, number in enumerate(numbers):
                    out[row, place] = pixels[int(number)]
        return out

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        size = self._clip.resolution
        if self.windows.crop == "squash":
            return transforms.resize(frame, size, size, "bilinear")
        small = transforms.resize_short_side(frame, size)
        y, x, height, width = transforms.center_box(small.shape[0], small.shape[1], size)
        return small[y : y + height, x : x + width]

    def _started(
        self, records: range, batch: Windowed, video: np.ndarray
    ) -> tuple[Windowed, jax.Array]:
        """The batch, and its features, which the device may still be computing."""
        made = self._run(video)
        for clip, (number, _) in zip(video, batch, strict=False):  # meanwhile
            self.seen.add_clip(clip, records[number])
        return batch, made

    def _run(self, video: np.ndarray) -> jax.Array:
        return self._program(self.params, {"video": video})[1]

    def _width(self) -> int:
        clip = self._clip
        shape = (self.windows.batch, clip.frames, clip.resolution, clip.resolution, 3)
        batch = {"video": jax.ShapeDtypeStruct(shape, np.uint8)}
        return jax.eval_shape(self._program.function, self.params, batch).shape[1]


def _times(record: schema.Record | None, frames: np.ndarray) -> np.ndarray:
    """(W, 2) int64: when the first frame of a window begins and its last one ends."""
    if record is None:
        return np.zeros((0, 2), np.int64)
    times = np.asarray(record.timestamps_us, np.int64)
    frame_us = round(1e6 / record.fps)
    return np.stack([times[frames[:, 0]], times[frames[:, -1]] + frame_us], axis=1)


def extract(
    extractor: Extractor,
    out: str | os.PathLike[str],
    provenance: dict[str, Any],
    *,
    part: int = 0,
    parts: int = 1,
) -> int:
    """Writes the missing shards of this process, and the manifest once all are there.

    Returns:
      Number of shards written.

    Raises:
      ValueError: `out` holds features made with other weights, windows or data.
      UnreadableRecordError: a damaged record, unless those are skipped.
    """
    by_shard.check_part(part, parts)
    dataset = extractor.dataset
    writer = CompanionWriter(out, NAME, dataset.manifest, dataset.split)
    by_shard.check_same(storage.join(out, f"{NAME}-{dataset.split}.json"), provenance, "windows")
    seen = SeenShards(out, NAME, dataset.split, len(dataset.manifest.split(dataset.split).shards))
    windows = 0

    def rows(records: range) -> Iterator[dict[str, np.ndarray]]:
        nonlocal windows
        for arrays in extractor.shard(records):
            windows += len(arrays["features"])
            yield arrays

    counts = by_shard.counts(writer, dataset)
    written = by_shard.write_shards(
        writer, counts, rows, part, parts, lambda number: seen.keep(number, extractor.seen)
    )
    if written:
        say(f"{windows} windows in {written} shards")
    if extractor.skipped:
        say(f"warning: {extractor.skipped} records cannot be read and have no windows")
    if by_shard.finish(writer, out):
        seen.finish()
    return written


HELP = {
    "stride": "Stored frames between the starts of two windows.",
    "frame_stride": "Stored frames between two frames of a window.",
    "crop": "center: short side resized, middle cut out; squash: both sides resized.",
    "pool": "mean: of the tokens; head: what enters a classifier's head.",
    "batch": "Windows per step.",
    "skip_unreadable": "Leave damaged records without windows instead of stopping.",
}


def start(job: ShardJob) -> None:
    """Does the work of the command."""
    extractor = Extractor(job.model, job.params, job.mesh, job.dataset, job.options, job.threads)
    extract(extractor, job.out, job.provenance, part=job.part, parts=job.parts)


def main() -> None:
    """The command `ivj extract`."""
    by_shard.command(start, Windows, settings="windows", helps=HELP, what="features")


if __name__ == "__main__":
    main()
