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
    def source(self) -> str:
        """The page of the zoo that it is on, such as `umt`."""
        return self.name.partition("/")[0]

    @property
    def pretrained(self) -> bool:
        """Whether this is a model before fine-tuning."""
        return self.classes == 0
