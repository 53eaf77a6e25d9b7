"""How fast this machine turns records into training clips, in one thread and as a stream."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from data_pipelines.clips import sampling
from data_pipelines.config import DataConfig
from data_pipelines.records import encoded
from data_pipelines.stream.assemble import Source
from data_pipelines.stream.pipeline import TrainStream

STAGES = ("read", "decode", "crop")


@dataclasses.dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
      bare_per_core: clips per second of CPU time of the functions alone, in one thread.
      stream_per_core: clips per second of CPU time of this process through the whole stream.
      stream_per_second: clips per second by the clock, on whatever cores were free.
      stages: seconds of CPU time per clip for each of `STAGES`.
      bytes_per_clip: bytes read from storage per clip.
      record_bytes: mean size of the records they came from.
      clips: how many clips the two measurements took.
    """

    bare_per_core: float
    stream_per_core: float
    stream_per_second: float
    stages: dict[str, float]
    bytes_per_clip: float
    record_bytes: float
    clips: tuple[int, int]


def measure(config: DataConfig, seconds: float) -> Speed:
    """Runs the bare functions for `seconds`, then the stream for `seconds`.

    Raises:
      FileNotFoundError, ValueError: as `stream.pipeline.TrainStream`.
    """
    stream = TrainStream(config)
    try:
        stages, bytes_per_clip, record_bytes, bare = _bare(stream, seconds)
        per_core, per_second, through = _through(stream, seconds)
    finally:
        stream.close()
    return Speed(
        bare_per_core=1 / sum(stages.values()),
        stream_per_core=per_core,
        stream_per_second=per_second,
        stages=stages,
        bytes_per_clip=bytes_per_clip,
        record_bytes=record_bytes,
        clips=(bare, through),
    )


def _bare(stream: TrainStream, seconds: float) -> tuple[dict[str, float], float, float, int]:
    """Seconds per clip and stage, bytes read per clip, bytes of its record, clips."""
    draws = np.array(stream.plan.draws(1000), float)
    sizes = [_record_bytes(source) for source in stream.sources]
    spent = dict.fromkeys(STAGES, 0.0)
    clips = 0
    end = time.monotonic() + seconds
    read, size = 0, 0.0
    while time.monotonic() < end or not clips:
        rng = np.random.Generator(np.random.Philox(key=[stream.config.seed, clips]))
        # As often as the mixture has it.
        number = int(rng.choice(len(draws), p=draws / draws.sum()))
        source = stream.sources[number]
        transform = source.transform
        dataset, clip = source.dataset, stream.config.clip_of(source.component.media)
        index = int(rng.integers(len(dataset)))
        before, began = dataset.source.bytes_read, time.thread_time()
        record = dataset.load(index)
        wanted = sampling.train_frames(
            clip.sampling, record.timestamps_us, record.fps, clip.frames, clip.stride, rng
        )
        frames = dataset.frames(index, record, wanted)
        loaded = time.thread_time()
        transform(frames, rng)
        done = time.thread_time()
        read += dataset.source.bytes_read - before
        size += sizes[number]
        # Frames may be read when they are decoded: decoding again, from memory, tells them apart.
        images = [record.frames[int(frame)] for frame in np.unique(wanted)]
        again = time.thread_time()
        for image in images:
            encoded.decode(image)
        decoding = min(time.thread_time() - again, loaded - began)
        spent["read"] += loaded - began - decoding
        spent["decode"] += decoding
        spent["crop"] += done - loaded
        clips += 1
    return {s: t / clips for s, t in spent.items()}, read / clips, size / clips, clips


def _record_bytes(source: Source) -> float:
    split = source.dataset.manifest.split(source.component.split)
    return sum(shard.bytes for shard in split.shards) / split.records


def _through(stream: TrainStream, seconds: float) -> tuple[float, float, int]:
    """Clips per second of CPU time and by the clock, and how many clips."""
    # What lies ready in the buffer was paid for before the clock started.
    for _ in range(stream.config.reader.buffer):
        next(stream)
    clips = 0
    wall, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - wall < seconds or not clips:
        clips += len(next(stream)["index"])
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    return clips / cpu, clips / wall, clips


def report(speed: Speed) -> Iterator[str]:
    """Lines for the terminal."""
    total = sum(speed.stages.values())
    shares = ", ".join(f"{stage} {took / total:.0%}" for stage, took in speed.stages.items())
    overhead = speed.bare_per_core / speed.stream_per_core - 1
    yield (
        f"bare functions   {speed.bare_per_core:8.1f} clips/s per core  ({speed.clips[0]} clips; "
        f"{shares})"
    )
    yield (
        f"whole stream     {speed.stream_per_core:8.1f} clips/s per core  ({speed.clips[1]} clips; "
        f"{overhead:+.0%} CPU time per clip)"
    )
    yield f"                 {speed.stream_per_second:8.1f} clips/s by the clock, here and now"
    yield (
        f"read             {speed.bytes_per_clip / 1e6:8.2f} MB per clip, "
        f"{speed.bytes_per_clip / speed.record_bytes:.0%} of a record"
    )
