"""What the training stream and an evaluation pass look like, as plain settings."""

from __future__ import annotations

import dataclasses

# Recorded in every checkpoint. Raise it when the same settings would give other pixels or another
# order, so that a run refuses to continue on a stream that silently changed.
STREAM_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ReaderConfig:
    """How records are read; none of it changes which examples come, or their pixels."""

    threads: int = 8  # decoding threads per process; they share the rows of a batch
    buffer: int = 4  # batches decoded ahead, in this process and in every worker; bounds the memory
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
class ImageConfig:
    """The batches of a mixture's still images: clips of one frame."""

    global_batch: int = 0  # images per step over all hosts; 0 = that of the videos
    size: int = 0  # height and width after the crop; 0 = that of the videos


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training stream."""

    train: str = ""  # directory made by `python -m data_pipelines.ingest`
    # Several sets instead of `train`, written as mixture.py describes:
    # "k400=/data/k400:0.7, ssv2=/data/ssv2:0.3; flip=off"
    mixture: str = ""
    # Sets whose class lists differ have no labels (-1), unless the lists are joined: "offset" puts
    # one behind the other, "name" makes classes of the same name one.
    merge_classes: str = "off"  # off | offset | name
    split: str = "train"
    eval: str = ""  # default directory of the evaluators; empty: the same as `train`
    global_batch: int = 256  # examples per step over all hosts and devices, repeats counted
    # Examples made of one decoded clip, each with a crop, mask and caption of its own.
    repeats: int = 1
    clip: ClipConfig = ClipConfig()
    image: ImageConfig = ImageConfig()
    crop: str = "multiscale"  # transforms.py: multiscale | random_resized | center
    # "auto" flips left-right unless the data set says that this changes the label.
    flip: str = "off"  # off | on | auto
    text: str = "off"  # captions in the batch: off | first | random
    seed: int = 0  # order and augmentation
    reader: ReaderConfig = ReaderConfig()

    def batch_of(self, media: str) -> int:
        """Examples per step of one media type, over all hosts."""
        return (
            (self.image.global_batch or self.global_batch)
            if media == "image"
            else (self.global_batch)
        )

    def clip_of(self, media: str) -> ClipConfig:
        """Shape of the clips of one media type."""
        if media != "image":
            return self.clip
        return dataclasses.replace(self.clip, frames=1, size=self.image.size or self.clip.size)


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """One pass over a split in which every record is seen `segments * crops` times."""

    clip: ClipConfig = ClipConfig(sampling="dense")
    segments: int = 1  # windows in time
    crops: int = 1  # windows in space along the longer side
    batch: int = 8  # videos per step over all hosts; each brings all its views
    reader: ReaderConfig = ReaderConfig()
