"""The views of video files, decoded when they are asked for: a test without shards.

The same decoder as the ingest's, with its settings, and the same rules as a pass over shards give
the same pixels as ingesting the files first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.config import ViewConfig
from data_pipelines.ingest import lists, sources
from data_pipelines.ingest.container import VideoError
from data_pipelines.ingest.decode import DecodeOptions
from data_pipelines.ingest.media import load_clip
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.rows import Row
from data_pipelines.records import encoded
from data_pipelines.stream import multiview
from data_pipelines.stream.item_views import ItemViews

LISTS = (*lists.SUFFIXES, ".tsv", ".json", ".jsonl", ".gz")  # files that name videos


def list_files(source: str) -> list[Row]:
    """The clips of a folder, a list or table as the ingest reads them, or of one video file.

    Raises:
      ValueError: there is no such file or folder, or no video in it.
    """
    position = Path(source)
    if position.is_file() and position.suffix.lower() not in LISTS:
        return [Row(path=source, name=source, id=source, split="")]
    if not position.exists():
        raise ValueError(f"{source}: no such file or folder; expected videos, or a list of them")
    return sources.read(IngestOptions(source=source, out="", name="videos")).rows


class FileViews(ItemViews):
    """One pass over files; arguments as `ItemViews`."""

    def __init__(
        self, rows: Sequence[Row], config: ViewConfig, *, threads: int = 2, strict: bool = False
    ):
        self.rows = rows
        side = max(DecodeOptions().short_side, config.clip.resolution)
        self._options = DecodeOptions(short_side=side, min_frames=1)
        super().__init__([row.name for row in rows], config, threads=threads, strict=strict)

    def views(self, number: int) -> np.ndarray | None:
        """The views of a file (views, T, H, W, 3); None where it cannot be read."""
        row = self.rows[number]
        try:
            if row.problem:
                raise VideoError("label", row.problem)
            clip = load_clip(row.path, self._options, row.start, row.end)
            wanted = multiview.choose(self.config, clip.timestamps_us, clip.fps)
            out = np.empty(self.shape, np.uint8)
            frames = {
                int(frame): encoded.decode(clip.frames[int(frame)]) for frame in np.unique(wanted)
            }
            multiview.cut(self.config, wanted, [frames[int(n)] for n in wanted.ravel()], out)
        except (VideoError, ValueError, OSError) as error:
            self.problems[number] = str(error)
            return None
        if clip.notes:
            self.notes[number] = "; ".join(f"{note.kind}: {note.detail}" for note in clip.notes)
        return out
