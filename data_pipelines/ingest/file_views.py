"""The views of video files, decoded when they are asked for: a test without shards.

The same decoder as the ingest's, with its settings, and the same rules as a pass over shards give
the same pixels as ingesting the files first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from data_pipelines.stream.parts.base import Batch
from data_pipelines.stream.prefetch import in_order

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


class FileViews(Iterator[Batch]):
    """One pass over files, every view of every file once, as `pipeline.ViewPass` over records.

    Attributes:
      problems: number of a file that cannot be used -> why; its rows are not `valid`.
      notes: number of a file that is odd but used -> what was wrong.
    """

    def __init__(self, rows: Sequence[Row], config: ViewConfig, *, threads: int = 2):
        multiview.check(config)
        self.rows, self.config = rows, config
        self.problems: dict[int, str] = {}
        self.notes: dict[int, str] = {}
        side = max(DecodeOptions().short_side, config.clip.resolution)
        self._options = DecodeOptions(short_side=side, min_frames=1)
        self._pool = ThreadPoolExecutor(threads)
        self._decoded = in_order(self._pool, self._views, range(len(rows)), threads + 1)
        self._left = len(self)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.config.batch)

    def __next__(self) -> Batch:
        if not self._left:
            raise StopIteration
        self._left -= 1
        config, count = self.config, self.config.clips * self.config.crops
        found = list(itertools.islice(self._decoded, config.batch))
        valid = np.zeros(config.batch, bool)
        index = np.full(config.batch, len(self.rows) - 1, np.int32)
        video = np.zeros((config.batch, *self._shape()), np.uint8)
        for position, (number, pixels) in enumerate(found):
            index[position], valid[position] = number, pixels is not None
            if pixels is not None:
                video[position] = pixels
        return {
            "video": video.reshape(-1, *video.shape[2:]),
            "label": np.full(config.batch * count, -1, np.int32),
            "index": np.repeat(index, count),
            "view": np.tile(np.arange(count, dtype=np.int32), config.batch),
            "valid": np.repeat(valid, count),
        }

    def close(self) -> None:
        """Stops the decoding threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _shape(self) -> tuple[int, ...]:
        config, clip = self.config, self.config.clip
        return (config.clips * config.crops, clip.frames, clip.resolution, clip.resolution, 3)

    def _views(self, number: int) -> np.ndarray | None:
        """(clips * crops, T, H, W, 3) uint8; None for a file that cannot be used."""
        row = self.rows[number]
        try:
            if row.problem:
                raise VideoError("label", row.problem)
            clip = load_clip(row.path, self._options, row.start, row.end)
            wanted = multiview.choose(self.config, clip.timestamps_us, clip.fps)
            out = np.empty(self._shape(), np.uint8)
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
