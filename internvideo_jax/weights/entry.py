"""What is said of a published checkpoint; the rows are in `zoo.py` of every family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

CLASSES = {
    "K400": 400,
    "K600": 600,
    "K700": 700,
    "K710": 710,
    "SSv1": 174,
    "SSv2": 174,
    "UCF101": 101,
    "HMDB51": 51,
    "MiT": 339,
    "ActivityNet": 200,
    "HACS": 200,
}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Frames per second and mean length of the videos of a set, and who says so; 0: not stated."""

    fps: float = 0.0
    seconds: float = 0.0
    source: str = ""


# Sets that nothing is stated of are missing: mixtures, and videos of whatever rate and length.
_KINETICS = Timing(
    30.0,
    10.0,
    "clips last 10 s at a rate that varies (Smaira et al. 2020, arXiv:2010.10864); 30 is no "
    "measured mean but the rate that SlowFast counts with (arXiv:1812.03982, section 3.1)",
)
_SOMETHING = Timing(
    12.0,
    4.03,
    "2 to 6 s, 4.03 s on average (Goyal et al. 2017, arXiv:1706.04261, of V1); its authors hand "
    "out V1 as frames at 12 per second, V2 as videos of 12 frames/s (MCG-NJU/TDN#61)",
)
_INTERNVID = Timing(
    0.0,
    11.7,
    "InternVid as a whole: 760 thousand hours in 234 million clips (arXiv:2307.06942, abstract)",
)
TIMINGS: Mapping[str, Timing] = {
    **dict.fromkeys(("K400", "K600", "K700", "K710"), _KINETICS),
    **dict.fromkeys(("SSv1", "SSv2"), _SOMETHING),
    **{f"InternVid-{part}": _INTERNVID for part in ("10M", "10M-FLT", "10M-DIV", "50M", "200M")},
    "WebVid-10M": Timing(
        0.0,
        17.5,
        "52 thousand hours in 10.7 million videos (m-bain.github.io/webvid-dataset, by way of "
        "tensorflow.org/datasets/catalog/webvid)",
    ),
    "UCF101": Timing(
        25.0,
        7.3,
        "27 hours (Soomro et al. 2012, arXiv:1212.0402, abstract) in 13,320 videos; 25 frames/s by "
        "descriptions of the set, such as that of Papers with Code",
    ),
    "HMDB51": Timing(
        30.0, 0.0, "30 frames/s by a survey (Jing and Tian 2019, arXiv:1902.06162), not the authors"
    ),
    "MiT": Timing(0.0, 3.0, "videos of 3 s (Monfort et al. 2018, arXiv:1801.03150, abstract)"),
}
WHOLE = 0  # a stride: the frames of a clip are spread over the whole video

# Where the authors keep files.
OSS = "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com"
HUB = "https://huggingface.co/OpenGVLab"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the reported accuracy was measured."""

    clips: int
    crops: int
    sampling: str  # as in data_pipelines.config.ClipConfig
    merge: str = "probability"  # as in internvideo_jax.evaluators.metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One published checkpoint."""

    name: str  # SOURCE/MODEL, what `zoo.find` knows; MODEL is the published name where one exists
    file: str = ""  # published file name; empty: published without one
    kind: str  # of the weights: name of the model in the registry where it is a model
    size: str  # of the model's `of_size`
    data: str  # what it was trained on last
    classes: int = 0  # 0: none, a pre-trained model
    frames: int = 16
    # Between the frames of a training clip; WHOLE; or None where it is not stated.
    stride: int | None = None
    pixels: int = 224
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further model settings
    config: str  # the recipe that made it, or whose model and test are its own; empty: none
    settings: tuple[str, ...] = ()  # to add to that recipe
    made: bool = True  # whether that recipe made it; False: see `note`
    finetune: str = ""  # of a pre-trained model: a recipe that starts from it
    protocol: Protocol | None = None  # None: not stated, or nothing to test
    reported: str = ""
    note: str = ""
    short: str = ""  # a further name, of the one to take first among those of its kind
    url: str = ""  # of the file, as its zoo links to it; empty: not known
    bytes: int = 0  # size of the file; 0: not known
    sha256: str = ""  # of the file, in hex, as its authors state it; empty: not stated
    licence: str = ""  # of the repository that publishes it (SPDX); terms of the file may differ

    @property
    def seconds(self) -> float:
        """That a clip spanned in its training, by what is known of the videos; 0: unknown."""
        timing = TIMINGS.get(self.data, Timing())
        if self.stride is None:
            return 0.0
        if self.stride == WHOLE:
            return timing.seconds
        return self.frames * self.stride / timing.fps if timing.fps else 0.0

    @property
    def source(self) -> str:
        """The page of the zoo that it is on, such as `umt`."""
        return self.name.partition("/")[0]

    @property
    def pretrained(self) -> bool:
        """Whether this is a model before fine-tuning."""
        return self.classes == 0
