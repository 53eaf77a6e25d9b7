"""What a clip looks like in some thousand bytes: small grey pictures, and their hashes.

Frames are taken at a fixed distance in seconds, so that copies at another frame rate give the same
pictures, and copies that begin later the same ones moved. Aspect ratio, size and compression do not
show at this size. A hash has 64 bits: the signs of low frequencies of the cosine transform about
their median (the perceptual hash of Zauner 2010).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines.records.dataset import Dataset, FrameBuffer

VERSION = 1  # of what is stored
SIDE = 16  # pixels of a picture
PERIOD_US = 250_000  # between two pictures; longer clips have twice, four times ... that
MOST = 32  # pictures of a clip
BLANK = 4.0  # a picture of less contrast (standard deviation in grey levels) says nothing
_LOW = 8  # frequencies of a hash in each direction


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """One clip.

    Attributes:
      pictures: (T, SIDE, SIDE) uint8, `period_us` apart; blank ones at both ends are left out.
      decoded: frames that were decoded for them.
    """

    pictures: np.ndarray
    period_us: int
    decoded: int


def frame_numbers(times_us: Sequence[int]) -> tuple[np.ndarray, int]:
    """(T,) numbers of the frames nearest to multiples of the period, and the period in us."""
    times = np.asarray(times_us, np.int64)
    length, period = int(times[-1] - times[0]), PERIOD_US
    while length // period + 1 > MOST:
        period *= 2
    wanted = times[0] + np.arange(length // period + 1) * period
    after = np.searchsorted(times, wanted).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    nearer = np.abs(times[before] - wanted) <= np.abs(times[after] - wanted)
    return np.where(nearer, before, after), period


def picture(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (SIDE, SIDE) uint8, grey."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def fingerprint(dataset: Dataset, index: int, buffer: FrameBuffer | None = None) -> Fingerprint:
    """Of record `index`; UnreadableRecordError where it is damaged."""
    record = dataset.load(index)
    if not len(record.frames):
        return Fingerprint(np.empty((0, SIDE, SIDE), np.uint8), PERIOD_US, 0)
    numbers, period = frame_numbers(record.timestamps_us)
    frames = dataset.frames(index, record, numbers, buffer)
    pictures = np.stack([picture(frame) for frame in frames])
    seen = np.flatnonzero(pictures.std(axis=(1, 2)) >= BLANK)
    kept = pictures[seen[0] : seen[-1] + 1] if len(seen) else pictures[:0]
    return Fingerprint(kept, period, len(set(numbers.tolist())))


def hashes(pictures: np.ndarray) -> np.ndarray:
    """(T, SIDE, SIDE) uint8 -> (T,) uint64."""
    found = np.zeros(len(pictures), np.uint64)
    weights = np.uint64(1) << np.arange(_LOW * _LOW, dtype=np.uint64)
    for number, each in enumerate(pictures):
        low = cv2.dct(each.astype(np.float32))[:_LOW, :_LOW].ravel()
        # The mean brightness is no part of what is seen.
        found[number] = weights[1:][low[1:] > np.median(low[1:])].sum(dtype=np.uint64)
    return found


def normal(pictures: np.ndarray) -> np.ndarray:
    """(T, SIDE * SIDE) float32 of mean 0 and length 1: without brightness and contrast."""
    rows = pictures.reshape(len(pictures), SIDE * SIDE).astype(np.float32)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), BLANK * SIDE)
