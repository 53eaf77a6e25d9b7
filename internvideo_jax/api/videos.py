"""What may be given as videos, as a pass over their views."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from data_pipelines.config import ViewConfig
from data_pipelines.ingest.file_views import FileViews, list_files
from data_pipelines.stream.item_views import ArrayViews, ItemViews

Video = str | os.PathLike[str] | np.ndarray
# One or many: files, folders, lists; arrays (N, H, W, 3) uint8, or all in one (B, N, H, W, 3).
Videos = Video | Sequence[Video]


def open_videos(videos: Videos, views: ViewConfig, *, threads: int, strict: bool) -> ItemViews:
    """A pass over the views of videos; one at a time is held.

    Arrays that all have as many frames as a clip of the model are clips: each is looked at once,
    with every frame, and only brought to the model's resolution. Others are videos, whose frames
    are chosen as those of files are.

    Args:
      strict: a file that cannot be used raises ValueError when its turn comes.

    Raises:
      ValueError: no videos; files and arrays at once; an array that is no video.
    """
    given = [videos] if isinstance(videos, str | os.PathLike | np.ndarray) else list(videos)
    views = dataclasses.replace(views, batch=1)
    arrays = [array for array in given if isinstance(array, np.ndarray)]
    if not given or len(arrays) not in (0, len(given)):
        found = "none" if not given else f"{len(arrays)} arrays among {len(given)}"
        raise ValueError(f"videos: found {found}; expected files, or arrays (frames, H, W, 3)")
    if not arrays:
        places = [place for place in given if not isinstance(place, np.ndarray)]
        rows = [row for place in places for row in list_files(os.fspath(place))]
        return FileViews(rows, views, threads=threads, strict=strict)
    clips = [clip for array in arrays for clip in _split(array)]
    whole = all(len(clip) == views.clip.frames for clip in clips)
    if whole:
        views = once(views)
    return ArrayViews(clips, views, whole=whole, threads=threads)


def once(views: ViewConfig) -> ViewConfig:
    """The middle of a video, in time and in space, instead of several views."""
    return dataclasses.replace(views, clips=1, crops=1)


def _split(array: np.ndarray) -> list[np.ndarray]:
    """The videos of an array."""
    videos = [array] if array.ndim == 4 else list(array) if array.ndim == 5 else []
    for video in videos:
        if video.dtype != np.uint8 or video.shape[-1] != 3 or 0 in video.shape:
            break
    else:
        if videos:
            return videos
    raise ValueError(
        f"videos: found an array {array.shape} of {array.dtype}; expected (frames, H, W, 3) or "
        "(videos, frames, H, W, 3) of uint8, red first, not normalised"
    )
