"""What the training stream and an evaluation pass look like, as plain settings."""

from __future__ import annotations

import dataclasses

# Recorded in every checkpoint. Raise it when the same settings would give other pixels or another
# order, so that a run refuses to continue on a stream that silently changed.
STREAM_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ReaderConfig:
    """How records are read; none of it changes which examples come, or their pixels."""

    threads: int = 8  # decoding threads per process
    buffer: int = 4  # batches decoded ahead
    workers: int = 0  # extra processes, for hosts whose threads cannot keep up; 0 = threads only
    check_crc: bool = True
    # A record that cannot be read: "raise" stops with its address, "substitute" takes the next
    # readable record and counts it, up to max_substitutions per process.
    on_corrupt: str = "raise"
    max_substitutions: int = 100


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The shape of one clip and how its frames are chosen."""

    frames: int = 16
    stride: int = 4  # distance between sampled frames, in stored frames
    size: int = 224  # height and width after the crop, pixels
    sampling: str = "window"  # sampling.py: window (pre-training) | dense | segments


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training stream."""

    train: str = ""  # directory made by `python -m data_pipelines.ingest`
    split: str = "train"
    eval: str = ""  # default directory of the evaluators; empty: the same as `train`
    global_batch: int = 256  # examples per step over all hosts and devices
    clip: ClipConfig = ClipConfig()
    crop: str = "multiscale"  # transforms.py: multiscale | random_resized | center
    # "auto" flips left-right unless the data set says that this changes the label.
    flip: str = "off"  # off | on | auto
    seed: int = 0  # order and augmentation
    reader: ReaderConfig = ReaderConfig()


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """One pass over a split in which every record is seen `segments * crops` times."""

    clip: ClipConfig = ClipConfig(sampling="dense")
    segments: int = 1  # windows in time
    crops: int = 1  # windows in space along the longer side
    batch: int = 8  # videos per step over all hosts; each brings all its views
    reader: ReaderConfig = ReaderConfig()
