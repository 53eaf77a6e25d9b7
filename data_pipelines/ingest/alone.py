"""Rows of `--media features`: no file is read, and their records hold what the table says.

Such a record has no frames. What a model sees of it comes from a companion (`records.companion`),
or it is the texts, segments and turns themselves.
"""

from data_pipelines.ingest.decode import DecodedClip
from data_pipelines.ingest.rows import Row

SCHEME = "alone:"  # in front of the path of such a row

_FPS = 1.0  # of no frames; what reads a record may divide by it


def clip(row: Row) -> DecodedClip:
    """The clip of a row: its span, which without an end ends with the last of its annotations."""
    start = row.start or 0.0
    times = [*(segment.end for segment in row.segments), *(box.time for box in row.boxes)]
    end = max([start, *times]) if row.end is None else row.end
    return DecodedClip(
        frames=[],
        timestamps_us=[],
        fps=_FPS,
        height=0,
        width=0,
        source_height=0,
        source_width=0,
        start_us=round(start * 1e6),
        end_us=round(end * 1e6),
        notes=(),
        media_type="features",
    )
