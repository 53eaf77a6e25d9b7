"""How large the records of a source will be, judged by a sample of file headers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from data_pipelines.ingest import alone, media
from data_pipelines.ingest.audio import SAMPLE_RATE
from data_pipelines.ingest.container import (
    VideoError,
    announced_us,
    frame_rate,
    open_video,
    video_stream,
)
from data_pipelines.ingest.decode import DecodeOptions
from data_pipelines.ingest.encode import stored_size
from data_pipelines.ingest.image import image_size, is_image
from data_pipelines.ingest.pool import JobProgress
from data_pipelines.ingest.rows import Row

# JPEG bytes per pixel of 4:2:0 video frames by quality; means over 40 varied clips.
_QUALITIES = (10, 50, 75, 85, 90, 95, 98, 100)
_BYTES_PER_PIXEL = (0.040, 0.085, 0.120, 0.156, 0.192, 0.273, 0.374, 0.534)
_PNG_BYTES_PER_PIXEL = 1.4  # mean over ten clips


@dataclass(frozen=True, slots=True)
class EstimateTask:
    """Rows to estimate the record size from; `crashed` as in `.pool`."""

    rows: tuple[Row, ...]
    options: DecodeOptions
    crashed: Mapping[int, str] = field(default_factory=dict)


def estimate(task: EstimateTask, progress: JobProgress) -> float | None:
    """Mean record size in bytes over the rows that can be opened; None when none can."""
    sizes = []
    for position, row in enumerate(task.rows):
        progress.item(position)
        if row.problem or position in task.crashed:
            continue
        try:
            sizes.append(estimate_bytes(row, task.options))
        except VideoError:
            continue
    return sum(sizes) / len(sizes) if sizes else None


def estimate_bytes(row: Row, options: DecodeOptions) -> float:
    """Rough size of the record of a row, from the file's header alone.

    Raises:
      VideoError: the file cannot be opened or has no video.
    """
    if row.path.startswith(alone.SCHEME):
        return float(len(repr(row)))
    per_pixel = float(np.interp(options.quality, _QUALITIES, _BYTES_PER_PIXEL))
    if options.storage == "png":
        per_pixel = _PNG_BYTES_PER_PIXEL
    images = media.measure_images(row.path)
    if images is not None:
        *size, rate, seconds = images
        width, height = stored_size(size[0], size[1], Fraction(1), options.short_side)
        seconds = min(seconds, options.max_seconds or seconds)
        return seconds * min(rate, options.fps or rate) * width * height * per_pixel
    if is_image(row.path, options.media):
        width, height = stored_size(*image_size(row.path), Fraction(1), options.short_side)
        return width * height * per_pixel
    with open_video(row.path) as container:
        stream = video_stream(container)
        rate = float(frame_rate(stream))
        seconds = (announced_us(container, stream, 0) or 10e6) / 1e6
        seconds = min(seconds, row.end or seconds) - (row.start or 0.0)
        seconds = max(0.0, min(seconds, options.max_seconds or seconds))
        context = stream.codec_context
        display = options.pixels == "display"
        aspect = Fraction((display and stream.sample_aspect_ratio) or 1)
        width, height = stored_size(
            max(1, context.width), max(1, context.height), aspect, options.short_side
        )
    audio = 2 * SAMPLE_RATE if options.audio != "off" else 0
    return seconds * (min(rate, options.fps or rate) * width * height * per_pixel + audio)
