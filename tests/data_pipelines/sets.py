"""Tiny sets of noise clips, written record by record, for tests of what is read from where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejpeg

from data_pipelines.records import manifest, schema
from data_pipelines.records.reader import ShardWriter, read_index


def write_set(
    directory: Path,
    count: int,
    *,
    classes: Sequence[str] = (),
    frames: int = 8,
    captions: Sequence[Sequence[str]] = ((),),
    flip_changes_label: bool = False,
    audio: Sequence[schema.Waveform | None] = (None,),
    media_type: str = "video",
    times_us: Sequence[int] = (),
) -> Path:
    """`count` records of `frames` noise images, label i % classes, captions, audio [i % ...].

    Ten images a second, or at `times_us`.
    """
    directory.mkdir(parents=True)
    shard = directory / "set-train-00000-of-00001.tfrecord"
    rng = np.random.default_rng([count, frames])
    with ShardWriter(shard) as writer:
        for i in range(count):
            coarse = rng.integers(0, 256, (frames, 5, 6, 3), np.uint8)
            pictures = coarse.repeat(8, axis=1).repeat(8, axis=2)
            record = schema.Record(
                media_id=f"{directory.name}-{i}",
                frames=tuple(simplejpeg.encode_jpeg(picture) for picture in pictures),
                timestamps_us=tuple(times_us or range(0, 100_000 * frames, 100_000)),
                fps=10.0,
                height=40,
                width=48,
                labels=(i % len(classes),) if classes else (),
                captions=tuple(captions[i % len(captions)]),
                audio=audio[i % len(audio)],
                media_type=media_type,
            )
            writer.append(schema.encode(record), frames)
    info = manifest.ShardInfo(
        shard.name, count, shard.stat().st_size, writer.sha256, read_index(str(shard)).crc
    )
    labels = tuple(len(range(label, count, len(classes))) for label in range(len(classes)))
    split = manifest.SplitInfo((info,), count, count * frames, labels)
    manifest.save(
        manifest.Manifest(
            directory=str(directory),
            name=directory.name,
            schema_version=schema.SCHEMA_VERSION,
            classes=tuple(classes),
            flip_changes_label=flip_changes_label,
            options={},
            splits={"train": split},
        )
    )
    return directory
