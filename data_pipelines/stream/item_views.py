"""The views of videos that are in no split, made when they are asked for: of files, of arrays."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_pipelines.config import ViewConfig
from data_pipelines.stream import multiview
from data_pipelines.stream.parts.base import Batch
from data_pipelines.stream.prefetch import in_order

FPS = 30.0  # of arrays, which have no clock


class ItemViews(Iterator[Batch], abc.ABC):
    """One pass over videos, every view of every video once, as `pipeline.ViewPass` over records.

    Args:
      names: of the videos, for messages.
      strict: a video that cannot be used raises ValueError instead of being listed.

    Attributes:
      problems: number of a video that cannot be used -> why; its rows are not `valid`.
      notes: number of a video that is odd but used -> what was wrong.
    """

    def __init__(
        self, names: Sequence[str], config: ViewConfig, *, threads: int = 2, strict: bool = False
    ):
        multiview.check(config)
        self.names, self.config, self.strict = tuple(names), config, strict
        self.problems: dict[int, str] = {}
        self.notes: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(threads)
        self._made = in_order(self._pool, self.views, range(len(names)), threads + 1)
        self._left = len(self)

    @abc.abstractmethod
    def views(self, number: int) -> np.ndarray | None:
        """(clips * crops, T, H, W, 3) uint8; None, with an entry in `problems`, for a video that
        cannot be used."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the views of a video."""
        config, clip = self.config, self.config.clip
        return (config.clips * config.crops, clip.frames, clip.resolution, clip.resolution, 3)

    def __len__(self) -> int:
        return -(-len(self.names) // self.config.batch)

    def __next__(self) -> Batch:
        if not self._left:
            raise StopIteration
        self._left -= 1
        config, count = self.config, self.config.clips * self.config.crops
        found = list(itertools.islice(self._made, config.batch))
        valid = np.zeros(config.batch, bool)
        index = np.full(config.batch, len(self.names) - 1, np.int32)
        video = np.zeros((config.batch, *self.shape), np.uint8)
        for place, (number, pixels) in enumerate(found):
            index[place], valid[place] = number, pixels is not None
            if pixels is not None:
                video[place] = pixels
            elif self.strict:
                raise ValueError(f"{self.names[number]}: {self.problems[number]}")
        return {
            "video": video.reshape(-1, *video.shape[2:]),
            "label": np.full(config.batch * count, -1, np.int32),
            "index": np.repeat(index, count),
            "view": np.tile(np.arange(count, dtype=np.int32), config.batch),
            "valid": np.repeat(valid, count),
        }

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class ArrayViews(ItemViews):
    """Of decoded videos, (N, H, W, 3) uint8 each.

    Args:
      whole: they are clips already: every frame is taken, as they come.
    """

    def __init__(
        self,
        videos: Sequence[np.ndarray],
        config: ViewConfig,
        *,
        whole: bool = False,
        threads: int = 2,
    ):
        self.videos, self.whole = videos, whole
        names = [f"video {number}" for number in range(len(videos))]
        super().__init__(names, config, threads=threads, strict=True)

    def views(self, number: int) -> np.ndarray | None:
        """The views of a clip, (views, T, H, W, 3) uint8."""
        video = np.ascontiguousarray(self.videos[number])
        if self.whole:
            wanted = np.tile(np.arange(len(video)), (self.config.clips, 1))
        else:
            times = np.around(np.arange(len(video)) * 1e6 / FPS).astype(np.int64)
            wanted = multiview.choose(self.config, times, FPS)
        out = np.empty(self.shape, np.uint8)
        multiview.cut(self.config, wanted, [video[n] for n in wanted.ravel()], out)
        return out
