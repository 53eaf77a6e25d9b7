"""Published tests of video with text, as settings: retrieval, recognition, multiple choice.

`split` says which records the number was measured on; the directory that is read must hold them.
What a source does not state is not guessed: `frames` = 0 or `text_length` = 0 take the model's, and
`note` says what this project does otherwise. A result names its preset and the settings in which
the run departed from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from data_pipelines.config import ClipConfig, ViewConfig
from internvideo_jax.protocols import ModelConfig, clip_of
from internvideo_jax.registry import suggest
from internvideo_jax.tasks import Evaluator

VICLIP = "InternVid (Wang et al. 2023), released evaluation of ViCLIP"
INTERNVIDEO1 = "InternVideo (Wang et al. 2022), released retrieval scripts, ViT-L/14"
INTERNVIDEO1_ZERO_SHOT = "InternVideo (Wang et al. 2022), released zero-shot scripts"
INTERNVIDEO2_CLIP = "InternVideo2 CLIP, model zoo and released evaluation"

_LIKE_OPENAI = (
    "The source resizes the short side, bicubically for retrieval, and normalises as CLIP; here "
    "the resize is bilinear."
)
_GRID = (
    "The source takes one frame per second, thinned evenly to `frames`, and pads shorter clips "
    "with zeros; here the middle frame of each of `frames` equal parts. "
)


@dataclasses.dataclass(frozen=True)
class _Shared:
    source: str
    split: str
    reported: Mapping[str, str]  # model -> numbers, in %
    note: str = ""
    frames: int = 8  # 0: not stated
    sampling: str = "uniform"  # data_pipelines/clips/sampling.py, VIEWS
    crop_rule: str = "squash"
    seconds: float = 0.0
    text_length: int = 32  # 0: not stated
    clean: bool = True


@dataclasses.dataclass(frozen=True)
class RetrievalPreset(_Shared):
    """How a published table of text-video retrieval was made."""

    captions: str = "all"
    scale: float = 1.0  # 0: 1 / temperature of the model
    ties: str = "later"
    video_to_text: str = "captions"


@dataclasses.dataclass(frozen=True)
class ZeroShotPreset(_Shared):
    """How a published table of recognition by captions was made."""

    templates: str = "kinetics28"
    merge: str = "cosine"


@dataclasses.dataclass(frozen=True)
class ChoicePreset(_Shared):
    """How a published table of multiple choice was made."""

    options: str = "columns"
    first_answer: int = 0


Preset = RetrievalPreset | ZeroShotPreset | ChoicePreset
_Any = TypeVar("_Any", RetrievalPreset, ZeroShotPreset, ChoicePreset)


def _viclip(split: str, paper: str, rerun: str = "", **changes: Any) -> RetrievalPreset:
    reported = {}
    if paper:
        reported["ViCLIP-L/14 on 10M-FLT, paper, R@1 t2v / v2t"] = paper
    if rerun:
        reported["the same weights run again by a user of the release"] = rerun
    return RetrievalPreset(VICLIP, split, reported, **changes)


def _internvideo1(split: str, frames: int, t2v: str, v2t: str, **changes: Any) -> RetrievalPreset:
    columns = "R@1 / R@5 / R@10 / median / mean rank"
    return RetrievalPreset(
        INTERNVIDEO1,
        split,
        {f"zero-shot t2v, {columns}": t2v, f"zero-shot v2t, {columns}": v2t},
        note=_GRID + _LIKE_OPENAI + " Whether the numbers are with dual softmax is not stated.",
        **{
            "frames": frames,
            "crop_rule": "even",
            "text_length": 77,
            "clean": False,
            "scale": 0.0,
            "ties": "repeated",
            **changes,
        },
    )


_GROUPED = {"video_to_text": "grouped"}
_MSRVTT = "1k-A: 1000 test videos with one caption each"
_LSMDC = "public test: 1000 clips with one caption each"
_MSVD = "test list, about 40 captions per video"
_VATEX = "test list drawn from the validation videos, English, 10 captions per video"

RETRIEVAL: dict[str, RetrievalPreset] = {
    "viclip/msrvtt": _viclip(_MSRVTT, "42.4 / 41.3", "39.4 / 38.9 (dual softmax: 39.1 / 39.0)"),
    "viclip/msvd": _viclip(_MSVD, "49.1 / 75.1"),
    "viclip/lsmdc": _viclip(_LSMDC, "20.1 / 16.9", "17.8 / 15.2 (dual softmax: 18.5 / 15.8)"),
    "viclip/didemo": _viclip("test", "18.4 / 27.8", captions="paragraph", seconds=30.0),
    "viclip/activitynet": _viclip("val_1", "15.1 / 24.0", captions="paragraph"),
    "viclip/vatex": _viclip(_VATEX, "", note="The source reports no number."),
    "internvideo1/msrvtt": _internvideo1(
        _MSRVTT, 8, "40.0 / 65.3 / 74.1 / 2 / 23.9", "37.5 / 63.3 / 71.3 / 3 / 24.2"
    ),
    "internvideo1/msvd": _internvideo1(
        _MSVD, 12, "43.4 / 69.9 / 79.1 / 2 / 17.0", "67.6 / 90.6 / 94.6 / 1 / 2.9", **_GROUPED
    ),
    "internvideo1/lsmdc": _internvideo1(
        _LSMDC, 6, "17.6 / 32.4 / 40.2 / 23 / 101.7", "13.2 / 27.8 / 34.9 / 33 / 113.6"
    ),
    "internvideo1/didemo": _internvideo1(
        "test list",
        32,
        "31.5 / 57.6 / 68.2 / 3 / 35.7",
        "33.5 / 60.3 / 71.1 / 3 / 21.5",
        captions="paragraph",
    ),
    "internvideo1/activitynet": _internvideo1(
        "val_1",
        16,
        "30.7 / 57.4 / 70.2 / 4 / 23.0",
        "31.4 / 59.4 / 73.1 / 3 / 15.6",
        captions="paragraph",
    ),
    "internvideo1/vatex": _internvideo1(
        _VATEX, 8, "49.5 / 79.7 / 87.0 / 2 / 9.7", "69.5 / 95.0 / 98.1 / 1 / 2.1", **_GROUPED
    ),
}


_VICLIP_ROWS = (
    "CLIP L/14 (CLIP400M)",
    "ViCLIP-B/16 on 10M-FLT",
    "ViCLIP-L/14 on WebVid-10M",
    "ViCLIP-L/14 on 10M-DIV",
    "ViCLIP-L/14 on 10M-FLT",
    "ViCLIP-L/14 on 200M",
)


def _kinetics(classes: int, reported: str) -> ZeroShotPreset:
    rows = zip(_VICLIP_ROWS, reported.split(", "), strict=True)
    named = {f"{row}, top-1 / AVG": value for row, value in rows}
    return ZeroShotPreset(VICLIP, f"validation videos of Kinetics-{classes}", named)


def _internvideo2_clip(split: str, reported: str) -> ZeroShotPreset:
    """The released evaluation imports the 16 templates under the name of the 28."""
    sizes = zip(("S14", "B14", "L14", "1B", "6B"), reported.split(", "), strict=True)
    columns = "top-1 / AVG" if "/" in reported else "top-1"
    named = {f"{resolution}, {columns}": value for resolution, value in sizes}
    return ZeroShotPreset(INTERNVIDEO2_CLIP, split, named, text_length=0, templates="actionclip16")


ZERO_SHOT: dict[str, ZeroShotPreset] = {
    "viclip/k400": _kinetics(
        400,
        "58.42 / 70.14, 58.52 / 71.11, 59.88 / 71.03, 63.00 / 74.15, 64.80 / 75.70, 59.80 / 71.09",
    ),
    "viclip/k600": _kinetics(
        600,
        "55.11 / 67.16, 55.37 / 68.27, 58.66 / 69.84, 60.68 / 72.07, 62.20 / 73.53, 57.80 / 69.34",
    ),
    "viclip/k700": _kinetics(
        700,
        "46.12 / 58.38, 47.09 / 59.98, 50.23 / 61.86, 52.50 / 64.59, 54.30 / 66.38, 49.30 / 61.25",
    ),
    "internvideo1/k400": ZeroShotPreset(
        INTERNVIDEO1_ZERO_SHOT,
        "test list of Kinetics-400",
        {"ViT-B/16, top-1": "56.65", "ViT-L/14, top-1": "64.25"},
        note=_LIKE_OPENAI + " Weights are averaged with CLIP's, half each.",
        crop_rule="even",
        text_length=77,
        clean=False,
        templates="actionclip16",
        merge="probability",
    ),
    "internvideo2_clip/k400": _internvideo2_clip(
        "validation videos of Kinetics-400",
        "62.1 / 73.6, 67.7 / 78.0, 70.7 / 80.5, 73.1 / 82.4, 72.7 / 82.2",
    ),
    "internvideo2_clip/k600": _internvideo2_clip(
        "validation videos of Kinetics-600",
        "61.6 / 72.5, 66.8 / 77.0, 69.9 / 79.6, 72.8 / 81.8, 71.7 / 81.2",
    ),
    "internvideo2_clip/k700": _internvideo2_clip(
        "validation videos of Kinetics-700",
        "51.4 / 63.4, 57.9 / 69.3, 61.9 / 72.9, 64.9 / 75.2, 64.2 / 75.2",
    ),
    "internvideo2_clip/ucf101": _internvideo2_clip(
        "test videos of UCF101; which of the three splits is not stated",
        "79.1, 83.4, 85.9, 88.8, 89.5",
    ),
    "internvideo2_clip/hmdb51": _internvideo2_clip(
        "test videos of HMDB51; which of the three splits is not stated",
        "49.2, 52.5, 53.2, 53.9, 56.7",
    ),
    "internvideo2_clip/mit": _internvideo2_clip(
        "validation videos of Moments in Time", "24.1, 27.9, 30.6, 31.6, 32.9"
    ),
}

CHOICE: dict[str, ChoicePreset] = {
    "internvideo1/msrvtt_mc": ChoicePreset(
        INTERNVIDEO1_ZERO_SHOT,
        "2990 test videos, 5 options each",
        {"ViT-B/16, accuracy": "91.31", "ViT-L/14, accuracy": "93.44"},
        note=_LIKE_OPENAI + " Weights are averaged with CLIP's, half each.",
        crop_rule="even",
        text_length=77,
        clean=False,
    ),
    "internvideo1/lsmdc_mc": ChoicePreset(
        INTERNVIDEO1_ZERO_SHOT,
        "public test, 5 options each; the source skips three clips it cannot read",
        {"ViT-B/16, accuracy": "73.96", "ViT-L/14, accuracy": "77.26"},
        note=_LIKE_OPENAI + " Weights are averaged with CLIP's, half each.",
        crop_rule="even",
        text_length=77,
        clean=False,
        first_answer=1,
    ),
    "internvideo2_clip/ssv2_mc": ChoicePreset(
        INTERNVIDEO2_CLIP,
        "Something-Something V2 validation, 174 captions",
        {
            "S14, accuracy": "46.4",
            "B14, accuracy": "55.9",
            "L14, accuracy": "59.6",
            "1B, accuracy": "61.5",
            "6B, accuracy": "63.5",
        },
        text_length=0,
        options="classes",
    ),
}


def find(table: Mapping[str, _Any], name: str) -> _Any:
    """The preset of that name; ValueError with the near matches when there is none."""
    if name not in table:
        raise ValueError(f"unknown preset {name!r}: {suggest(name, table)}")
    return table[name]


def settings(
    name: str, preset: Preset, *, resolution: int, batch: int, frames: int
) -> dict[str, Any]:
    """Fields of the evaluator that a preset decides.

    Args:
      resolution: of a clip, as the model takes it.
      batch: videos read at a time over all hosts.
      frames: as the model takes them; 0 takes the preset's.
    """
    clip = ClipConfig(
        frames=frames or preset.frames, resolution=resolution, sampling=preset.sampling
    )
    views = ViewConfig(clip=clip, crop_rule=preset.crop_rule, batch=batch)
    own = {key: value for key, value in vars(preset).items() if key not in _NO_FIELDS}
    return {"preset": name, "views": views, **own}


# Of a preset, but no fields of an evaluator: told in words, or part of the views or the model.
_WORDS = {"source", "split", "reported", "note"}
_NO_FIELDS = {*_WORDS, "frames", "sampling", "crop_rule", "text_length"}


def compared(
    name: str, preset: Preset | None, task: Evaluator, config: ModelConfig
) -> dict[str, Any]:
    """The part of a protocol that names the preset, and where the run departs from it.

    Args:
      preset: None for settings that are nobody's.
      task: the evaluator.
      config: of the model.
    """
    if preset is None:
        return {"preset": None, "source": None, "modified": {}}
    views, text = task.views, config.inputs.text
    used = {
        **vars(task),
        "frames": clip_of(config).frames,
        "sampling": views.clip.sampling,
        "crop_rule": views.crop_rule,
        "text_length": text and text.context,
    }
    modified = {}
    for field, wanted in vars(preset).items():
        if field in _WORDS:
            continue
        found = used.get(field)
        unstated = field in ("frames", "text_length") and not wanted
        if found != wanted and not unstated:
            modified[field] = {"preset": wanted, "used": found}
    for field, found in (("clips", views.clips), ("crops", views.crops)):
        if found != 1:
            modified[field] = {"preset": 1, "used": found}
    return {
        "preset": name,
        "source": preset.source,
        "preset_split": preset.split,
        "reported": dict(preset.reported),
        "note": preset.note,
        "modified": modified,
    }
