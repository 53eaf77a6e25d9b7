"""A folder of video files -> the clips that a video-text model looks at."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import simplejpeg

from data_pipelines.clips import sampling, transforms
from data_pipelines.ingest import sources
from data_pipelines.ingest.decode import DecodeOptions, decode_clip
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.rows import Row
from data_pipelines.records import encoded
from data_pipelines.records.outputs import local_only

CROPS = ("squash", "center")
# Raise it when the same settings would give other pixels, so that no cached embedding is reused.
CLIPS_VERSION = 2
_QUALITY = 95  # of the frames between decoder and model
_LEAST_SIDE = 256  # pixels of the short side kept by the decoder
_THUMBNAIL = 180  # pixels of a thumbnail's short side, at most


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which frames and pixels of a file the model sees: beside the weights, all that decides.

    Attributes:
      frames, size: of the model's clip.
      crop: `squash` resizes both sides freely, as the evaluation of ViCLIP; `center` resizes the
        short side and cuts out the middle.
      resize: one of transforms.RESIZE; the evaluation of ViCLIP is bicubic.
      window: seconds of a clip; 0 makes one clip of a whole file.
      fps: frames per second that are decoded at most; 0 takes all.
    """

    frames: int
    size: int
    crop: str = "squash"
    resize: str = "bicubic"
    window: float = 0.0
    fps: float = 0.0

    def __post_init__(self) -> None:
        for name, found, known in (
            ("crop", self.crop, CROPS),
            ("resize", self.resize, transforms.RESIZE),
        ):
            if found not in known:
                raise ValueError(f"--{name}={found}: expected one of {', '.join(known)}")
        for name, value in (("window", self.window), ("fps", self.fps)):
            if not 0 <= value < math.inf:
                raise ValueError(f"--{name}={value}: expected 0 or more")

    def identity(self) -> str:
        """Equal texts mean equal clips."""
        settings = {**dataclasses.asdict(self), "version": CLIPS_VERSION, "rule": "middle"}
        return json.dumps(settings, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The clips of one file.

    Attributes:
      pixels: (W, T, size, size, 3) uint8.
      windows_us: (W, 2) int64, start and end in microseconds from the start of the file.
      thumbnails: a JPEG file for each.
      note: what was wrong with a file that could be used all the same; mostly empty.
    """

    pixels: np.ndarray
    windows_us: np.ndarray
    thumbnails: tuple[bytes, ...]
    note: str = ""


def list_videos(folder: str | Path) -> list[Row]:
    """The video files in and below a folder, by name; hidden ones and other suffixes left out.

    Raises:
      ValueError: no such folder, or no video in it.
    """
    local_only("--videos", folder)
    if not os.path.isdir(folder):
        raise ValueError(f"--videos={folder}: no such folder; expected a folder of video files")
    return sources.read(IngestOptions(source=os.fspath(folder), out="", name="videos")).rows


def decode(path: str, options: Sampling) -> Decoded:
    """Decodes a file once and cuts it into clips.

    Each clip has the frames of the rule `middle`: the middle one of each of T equal parts.

    Raises:
      VideoError: the file gives no frame.
    """
    side = max(options.size, _LEAST_SIDE)
    fps = options.fps or None
    found = decode_clip(
        path, DecodeOptions(short_side=side, quality=_QUALITY, fps=fps, min_frames=1)
    )
    times = np.asarray(found.timestamps_us, np.int64)
    numbers, spans = _windows(times, found.end_us, options.window)
    pixels = np.empty((len(spans), options.frames, *[options.size] * 2, 3), np.uint8)
    thumbnails = []
    for row, members in enumerate(numbers):
        chosen = members[sampling.uniform_center(len(members), options.frames)]
        pictures = {int(n): encoded.decode(found.frames[n]) for n in np.unique(chosen)}
        for position, number in enumerate(chosen):
            _fit(pictures[int(number)], options, pixels[row, position])
        thumbnails.append(_thumbnail(pictures[int(chosen[len(chosen) // 2])]))
    note = "; ".join(f"{note.kind}: {note.detail}" for note in found.notes)
    return Decoded(pixels, spans, tuple(thumbnails), note)


def _windows(times: np.ndarray, end_us: int, window: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Frame numbers and (start, end) of every window that has frames."""
    if not window:
        return [np.arange(len(times))], np.array([[0, end_us]], np.int64)
    length = max(round(window * 1e6), 1)
    of_frame = times // length
    numbers = [np.flatnonzero(of_frame == n) for n in np.unique(of_frame)]
    starts = np.unique(of_frame) * length
    return numbers, np.stack([starts, np.minimum(starts + length, max(end_us, 1))], axis=1)


def _fit(frame: np.ndarray, options: Sampling, out: np.ndarray) -> None:
    size = options.size
    if options.crop == "center":
        frame = transforms.resize_short_side(frame, size, options.resize)
        y, x, height, width = transforms.center_box(frame.shape[0], frame.shape[1], size)
        out[...] = frame[y : y + height, x : x + width]
    else:
        transforms.resize(frame, size, size, options.resize, out)


def _thumbnail(frame: np.ndarray) -> bytes:
    if min(frame.shape[:2]) > _THUMBNAIL:
        frame = transforms.resize_short_side(frame, _THUMBNAIL, "area")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), 80, "RGB")
