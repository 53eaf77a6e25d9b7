"""What the training stream and an evaluation pass look like, as plain settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.limits import limited

# Recorded in every checkpoint. Raise it when the same settings would give other pixels or another
# order, so that a run refuses to continue on a stream that silently changed.
STREAM_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ReaderConfig:
    """How records are read; none of it changes which examples come, or their pixels."""

    threads: int = 8  # decoding threads per process; they share the rows of a batch
    # Batches decoded ahead, in this process and in every worker; bounds the memory.
    buffer: int = limited(4, least=1)
    workers: int = 0  # extra processes, for hosts whose threads cannot keep up; 0 = threads only
    check_crc: bool = True
    # A record that cannot be read: "raise" stops with its address, "substitute" takes the next
    # readable record and counts it, up to max_substitutions per process.
    on_corrupt: str = "raise"
    max_substitutions: int = 100


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The shape of one clip and how its frames are chosen."""

    frames: int = limited(16, least=1)
    stride: int = limited(4, least=1)  # distance between sampled frames, in stored frames
    resolution: int = limited(224, least=1)  # height and width after the crop, pixels
    sampling: str = "window"  # sampling.py, TRAIN and VIEWS: window | dense | segments | ...


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the pixels of a training clip, the same for all its frames (augment.py)."""

    # timm's policy string, such as rand-m7-n4-mstd0.5-inc1; empty = no RandAugment.
    rand_augment: str = ""
    rand_augment_interpolation: str = "bicubic"  # bilinear | bicubic, of its geometric operations
    area: Sequence[float] = (0.08, 1.0)  # crop=random_resized: share of the frame
    ratio: Sequence[float] = (3 / 4, 4 / 3)  # crop=random_resized: width over height
    short_side: Sequence[int] = (256, 320)  # crop=random: range of the short side before the cut
    # transforms.py: area | bilinear | bicubic | pil_bilinear | pil_bicubic; empty takes what the
    # reference does with this crop.
    resize: str = ""
    # Half widths of brightness, contrast, saturation and hue; 0 = off.
    jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    # Half widths of shifts of hue (of 180), saturation and value, whole levels; 0 = off.
    hsv_shift: Sequence[int] = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """The batches of a mixture's still images: clips of one frame."""

    global_batch: int = 0  # images per step over all hosts; 0 = that of the videos
    resolution: int = 0  # height and width after the crop; 0 = that of the videos


@dataclasses.dataclass(frozen=True)
class SetConfig:
    """One set of a mixture; what is empty is as `DataConfig` has it."""

    directory: str
    # Share of the examples, before all are scaled to 1; without any, by the numbers of records.
    weight: float = limited(0.0, least=0)
    split: str = ""
    media: str = "video"  # records/media.py: video | image | audio | audio_video | features
    crop: str = ""
    flip: str = ""
    features: str = ""
    prompt: str = ""  # text in front of every caption of the set


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training stream."""

    train: str = ""  # directory made by `ivj ingest`
    # Several sets instead of `train`: a SetConfig by name or, on the command line, as mixture.py
    # describes, "k400=/data/k400:0.7, ssv2=/data/ssv2:0.3; flip=off".
    mixture: str | Mapping[str, SetConfig | Mapping[str, Any]] = ""
    # Sets whose class lists differ have no labels (-1), unless the lists are joined: "offset" puts
    # one behind the other, "name" makes classes of the same name one.
    merge_classes: str = "off"  # off | offset | name
    split: str = "train"
    eval: str = ""  # default directory of the evaluators; empty: the same as `train`
    # Examples per step over all hosts and devices, repeats counted. 0: batch, length and warm-up of
    # a run follow from the number of records (internvideo_jax/run/small.py).
    global_batch: int = 256
    # Examples made of one decoded clip, each with a crop, mask and caption of its own.
    repeats: int = limited(1, least=1)
    clip: ClipConfig = ClipConfig()
    image: ImageConfig = ImageConfig()
    crop: str = "multiscale"  # augment.py: multiscale | random_resized | random | center | squash
    augment: AugmentConfig = AugmentConfig()
    # "auto" flips left-right unless the dataset says that this changes the label.
    flip: str = "off"  # off | on | auto
    text: str = "off"  # captions in the batch: off | first | random
    # text/: clip | clip:PATH | bert:PATH; empty: captions stay strings, which no device takes.
    tokenizer: str = ""
    text_length: int = limited(32, least=1)  # ids per caption, special tokens and padding included
    text_clean: bool = False  # captions without case and punctuation, as ViCLIP and stage 2 train
    # Audio of an example (audio.py); 0 = off. From a random place of the record's audio, as the
    # reference has it, or from the time of the first sampled frame.
    audio_seconds: float = limited(0.0, least=0)
    audio_window: str = "random"  # random | frames
    # Companion with cached arrays of the records (companion.py): its directory, in that of the
    # set unless absolute; empty = off.
    features: str = ""
    # 0: every pass over a set draws its frames, crops, flips and captions anew. V > 0: a record
    # has V fixed views, drawn from index * V + view; pass e shows view e % V, and row e % V of
    # companion arrays (V, ...). So a teacher's features can be computed before the training.
    fixed_views: int = 0
    # Further parts of the batch by name (stream/parts): segments, boxes, turns, sequences, or one
    # of your own.
    parts: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"kind": "part", "many": True}
    )
    # File of records that neither training nor evaluation sees, as `ivj data audit` writes it; of
    # sets that it does not name all are used.
    leave_out: str = ""
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
        return dataclasses.replace(
            self.clip, frames=1, resolution=self.image.resolution or self.clip.resolution
        )


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """One pass over a split in which every record is seen `clips * crops` times."""

    clip: ClipConfig = ClipConfig(sampling="dense")
    clips: int = limited(1, least=1)  # windows in time
    crops: int = limited(1, least=1)  # windows in space along the longer side
    # transforms.py, crop_boxes: even | truncated | slowfast | corners | squash
    crop_rule: str = "even"
    batch: int = limited(8, least=1)  # videos per step over all hosts; each brings all its views
    reader: ReaderConfig = ReaderConfig()
