"""What is in a split, and which clips a step of the training stream or of a pass shows."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.clips import sampling, seconds
from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig, ViewConfig
from data_pipelines.records import companion, schema, storage
from data_pipelines.records.dataset import Dataset, open_dataset
from data_pipelines.records.media import MEDIA
from data_pipelines.stream.mixture import components_of
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from data_pipelines.tools.sheet import Page, SheetRow, contact_sheet, web_page

SUFFIXES = (".png", ".html")  # of the two files of a sheet
# Values of a batch row that are shown in full; longer ones by their shape.
_SHOWN_VALUES = 16
_CLASSES_SHOWN = 20


def summary(config: DataConfig, sample: int) -> Iterator[str]:
    """Lines about a dataset and one of its splits, or about every set of a mixture.

    Args:
      config: names directories and splits.
      sample: records to read for sizes, rates and captions, evenly spaced over the split.

    Raises:
      FileNotFoundError, ValueError: as `records.manifest.open_split`.
    """
    for component in components_of(config):
        clip = config.clip_of(component.media) if MEDIA[component.media].pixels else None
        yield from _one_set(component.directory, component.split, sample, clip)


def _one_set(directory: str, chosen: str, sample: int, clip: ClipConfig | None) -> Iterator[str]:
    dataset = open_dataset(directory, chosen)
    found = dataset.manifest
    yield f"{directory}: dataset {found.name!r}, {len(found.classes)} classes"
    for name, split in found.splits.items():
        mib = sum(shard.bytes for shard in split.shards) / 2**20
        yield (
            f"  split {name}: {split.records} records, {split.frames} frames, "
            f"{len(split.shards)} shards, {mib:.1f} MiB"
        )
    if found.rejected or found.partial:
        yield f"  {found.rejected} inputs rejected, {found.partial} decoded in part"
    if MEDIA[found.media].pixels:
        kept = found.image_options()
        yield f"  pixels {kept['pixels']}, frames {kept['storage']}"
    else:
        yield f"  no frames: a set of media={found.media}"
    counts = found.split(chosen).label_counts
    yield f"split {chosen}, fingerprint {found.fingerprint(chosen)[:16]}"
    classes = sorted(zip(found.classes, counts, strict=True), key=lambda item: -item[1])
    for name, count in classes[:_CLASSES_SHOWN]:
        yield f"  class {name}: {count}"
    if len(classes) > _CLASSES_SHOWN:
        rest = sum(count for _, count in classes[_CLASSES_SHOWN:])
        yield f"  and {len(classes) - _CLASSES_SHOWN} smaller classes: {rest}"
    yield from _sampled(dataset, sample)
    if clip is not None and clip.frames > 1 and clip.sampling in sampling.TRAIN_RULES:
        yield (
            f"  a clip of {clip.frames} frames (sampling {clip.sampling}, stride {clip.stride}) "
            f"spans {seconds.of_training(dataset.frame_times, clip).text()}"
        )
    yield from _companions(dataset)


def _sampled(dataset: Dataset, sample: int) -> Iterator[str]:
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(sample, len(dataset))).astype(int))
    records = [dataset.load(int(number)) for number in numbers]
    pictured = [record for record in records if len(record.frames)]
    sizes = Counter(f"{record.width}x{record.height}" for record in pictured)
    rates = [record.fps for record in pictured]
    lengths = [len(record.frames) for record in pictured]
    captioned = sum(any(record.captions) for record in records)
    columns = sorted({name for record in records for name in record.extra})
    yield f"  {len(records)} of {len(dataset)} records read:"
    if pictured:
        yield "  sizes " + ", ".join(f"{size} ({count})" for size, count in sizes.most_common(5))
        yield (
            f"  frames {min(lengths)} to {max(lengths)}, median {int(np.median(lengths))}; "
            f"{min(rates):g} to {max(rates):g} frames/s"
        )
    for name in ("segments", "boxes", "turns"):
        counts = [len(getattr(record, name)) for record in records]
        if any(counts):
            share = sum(map(bool, counts)) / len(records)
            yield f"  {name} in {share:.0%}, at most {max(counts)}"
    if sounding := sum(record.audio is not None for record in records):
        yield f"  audio in {sounding / len(records):.0%}"
    yield f"  captions in {captioned / len(records):.0%}"
    yield f"  extra columns: {', '.join(columns) or 'none'}"
    yield "  first ids: " + ", ".join(repr(record.media_id) for record in records[:3])


def _companions(dataset: Dataset) -> Iterator[str]:
    """What companions in the directory of a local set have for its split."""
    directory = dataset.manifest.directory
    places = [] if storage.is_remote(directory) else sorted(Path(directory).iterdir())
    for place in places:
        if not (place / companion.FILE_NAME).is_file():
            continue
        try:
            found = companion.open_companion(place, dataset.manifest, dataset.split)
            held = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in found[0].items())
        except (ValueError, FileNotFoundError) as error:
            held = f"unusable: {error}"
        yield f"  companion {place.name}, of the first record: {held}"


def train_page(config: DataConfig, step: int, clips: int) -> Page:
    """The clips of one training step, as every host together would get them.

    Args:
      config: the training stream.
      step: any step number, 0 being the first.
      clips: at most so many of the batch.

    Raises:
      ValueError: as `stream.pipeline.TrainStream`, or a negative step.
    """
    if step < 0:
        raise ValueError(f"--step: found {step}, expected 0 or more")
    stream = _part_of_a_step(config, step, clips)
    try:
        batch = next(stream)
    finally:
        stream.close()
    shown = min(clips, len(batch["index"]))
    facts = [
        ("step", f"{step}: {shown} clips of a batch of {config.global_batch}"),
        ("stream", stream.fingerprint),
        *((f"stream {name}", str(value)) for name, value in stream.identity.items()),
        *_shapes(batch),
    ]
    sets = batch["dataset"] if "dataset" in batch else np.zeros(shown, int)
    rows = [_row(stream.sources[sets[i]].dataset, batch, i) for i in range(shown)]
    places = ", ".join(component.directory for component in components_of(config))
    return Page(f"{places}: training step {step}", facts, rows)


def _part_of_a_step(config: DataConfig, step: int, clips: int) -> TrainStream:
    """A stream that makes at most `clips` clips per step, or as few as the settings allow.

    A step of thousands of clips is divided among hosts; being one of many is how to see few.
    """
    batch = config.global_batch
    config = dataclasses.replace(config, reader=_one_ahead(config.reader))
    for hosts in range(-(-batch // clips), batch + 1):
        if batch % hosts == 0:
            # Settings may ask for more than one example per host, such as several crops of a clip.
            with contextlib.suppress(ValueError):
                return TrainStream(config, processes=hosts, start_step=step)
    return TrainStream(config, start_step=step)


def view_page(config: DataConfig, step: int, clips: int, segments: int, crops: int) -> Page:
    """The views of a few videos as an evaluation pass gives them.

    Args:
      config: names the data and the clip.
      step: which group of videos: a pass of `clips // (segments * crops)` videos per step.
      clips: views to show; at least one video is shown.
      segments, crops: views in time and in space.

    Raises:
      ValueError: as `stream.pipeline.ViewPass`, or a step beyond the pass.
    """
    dataset = open_dataset(config.train, config.split, check_crc=config.reader.check_crc)
    if not MEDIA[dataset.manifest.media].pixels:
        raise ValueError(f"--views shows pixels, of which {config.train} has none; leave it out")
    videos = max(1, clips // (segments * crops))
    # Pre-training draws windows; the matching test views are the dense ones.
    sampling = "dense" if config.clip.sampling == "window" else config.clip.sampling
    records = len(dataset)
    steps = -(-records // videos)
    if not 0 <= step < steps:
        raise ValueError(
            f"--step: found {step}; a pass over {records} records with {videos} videos per step "
            f"has steps 0 to {steps - 1}"
        )
    views = ViewConfig(
        clip=dataclasses.replace(config.clip, sampling=sampling),
        clips=segments,
        crops=crops,
        batch=records,
        reader=_one_ahead(config.reader),
    )
    rows, facts = [], []
    for record in range(step * videos, min((step + 1) * videos, records)):
        # One host per record: each reads exactly its own.
        one = ViewPass(
            config.train, config.split, views, process=record, processes=records, dataset=dataset
        )
        try:
            batch = next(one)
        finally:
            one.close()
        rows += [_row(one.dataset, batch, i) for i in range(len(batch["video"]))]
        facts = _shapes(batch)
    facts = [
        ("split", config.split),
        ("step", f"{step} of {steps}: {videos} videos, {segments} x {crops} views each"),
        *facts,
    ]
    return Page(f"{config.train}: evaluation step {step}", facts, rows)


def write(page: Page, path: str) -> tuple[Path, Path]:
    """Writes `path`.png and `path`.html; returns the two paths."""
    picture, text = (Path(f"{path}{suffix}") for suffix in SUFFIXES)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(contact_sheet(page))
    text.write_text(web_page(page), encoding="utf-8", errors="backslashreplace")
    return picture, text


def _one_ahead(reader: ReaderConfig) -> ReaderConfig:
    """Reads no more than what is shown; the threads have no say in the pixels."""
    return dataclasses.replace(reader, threads=1, buffer=1, workers=0)


def _row(dataset: Dataset, batch: Mapping[str, np.ndarray], i: int) -> SheetRow:
    index = int(batch["index"][i])
    pixels = batch["video"][i] if "video" in batch else None
    facts = [
        (name, _text(values[i]))
        for name, values in sorted(batch.items())
        if name not in ("video", "index")
    ]
    try:
        record = dataset.load(index)
    except ValueError as error:  # a pass shows unreadable records as invalid
        return SheetRow(f"record {index}: unreadable", [("error", str(error)), *facts], pixels)
    labels = ", ".join(record.label_names or _names(dataset.classes, record.labels))
    title = str(record.media_id or index) + (f" [{labels}]" if labels else "")
    known = [
        ("record", dataset.address(index, record)),
        *([("labels", labels)] if labels else []),
        *(("caption", caption) for caption in record.captions),
        *((turn.role, turn.text) for turn in record.turns),
        ("stored", _stored(record)),
        *facts,
    ]
    return SheetRow(title, known, pixels)


def _names(classes: Sequence[str], labels: Sequence[int]) -> list[str]:
    return [classes[label] if classes else str(label) for label in labels]


def _stored(record: schema.Record) -> str:
    if not len(record.frames):
        return f"no frames; {record.start_us / 1e6:g} to {record.end_us / 1e6:g} s"
    return (
        f"{len(record.frames)} frames of {record.width}x{record.height} at {record.fps:g} frames/s"
    )


def _shapes(batch: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    return [
        (f"batch {name}", f"{values.dtype} {values.shape}")
        for name, values in sorted(batch.items())
    ]


def _text(value: Any) -> str:
    value = np.asarray(value)
    if value.size <= _SHOWN_VALUES:
        return str(value.tolist())
    return f"{value.dtype} {value.shape}"
