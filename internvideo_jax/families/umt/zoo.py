"""The published checkpoints of Unmasked Teacher. Only data; files are named as in its zoo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from internvideo_jax.families.umt.model import CLASSIFIER
from internvideo_jax.weights.entry import CLASSES, OSS, WHOLE, Entry, Protocol

KINETICS = Protocol(4, 3, "stepped")
SOMETHING = Protocol(4, 3, "segments")  # of InternVideo2 too: 8 x 3 x 4
SETS = {"K710": "k710", "K400": "k400", "K600": "k600", "K700": "k700", "MiT": "mit"}
SETS |= {"SSv1": "ssv1", "SSv2": "ssv2"}
LICENCE, FILES = "MIT", f"{OSS}/umt/single_modality"
FINETUNE = "configs/umt/finetune.py:recipe="


def test_of(data: str, clips: int) -> Mapping[str, Any]:
    """The zoo's test of a row, and what makes the recipe's of it."""
    protocol = SOMETHING if data.startswith("SSv") else KINETICS
    change = f"--config.evals.test.views.clips={protocol.clips}"
    return {"protocol": protocol, "settings": (change,) if clips != protocol.clips else ()}


def _classifier(file: str, data: str, top1: str, note: str = "") -> Entry:
    """`file` begins with the size and ends in _fFRAMES_resPIXELS, which are read from it."""
    letter = file[0]
    frames, pixels = (int(part.lstrip("fres")) for part in file.rsplit("_", 2)[1:])
    recipe = f"{letter}_{SETS[data]}" + "_16f" * (frames == 16) + "_384" * (pixels == 384)
    return _entry(
        file,
        kind="videomae_classifier",
        size={"b": "base", "l": "large"}[letter],
        data=data,
        classes=CLASSES[data],
        frames=frames,
        stride=WHOLE,
        pixels=pixels,
        changes=CLASSIFIER,
        config=FINETUNE + recipe,
        reported=top1,
        note=note,
        **test_of(data, 2 if data == "SSv2" else 4),
    )


def _entry(file: str, **fields: Any) -> Entry:
    url = f"{FILES}/{file}.pth"
    return Entry(name=f"umt/{file}", file=f"{file}.pth", url=url, licence=LICENCE, **fields)


def _student(size: str, clip_width: int) -> Entry:
    letter = size[0]
    return _entry(
        f"{letter}16_ptk710_f8_res224",
        kind="umt_student",
        size=size,
        data="K710",
        frames=8,
        stride=WHOLE,
        changes={"clip_width": clip_width},
        config=f"configs/umt/pretrain.py:size={size}",
        finetune=f"{FINETUNE}{letter}_k710",
    )


_FRAMES = "the zoo says 16 frames, file and script 8"
_K710 = "the zoo's setting is the student, the file name says by way of Kinetics-710"
UMT = (
    _student("base", 512),
    _student("large", 768),
    _classifier("b16_ptk710_ftk710_f8_res224", "K710", "81.9"),
    _classifier("l16_ptk710_ftk710_f8_res224", "K710", "86.0"),
    _classifier("b16_ptk710_ftk710_ftk400_f8_res224", "K400", "87.4"),
    _classifier("l16_ptk710_ftk710_ftk400_f8_res224", "K400", "90.3"),
    _classifier("l16_ptk710_ftk710_ftk400_f16_res224", "K400", "90.6"),
    _classifier("b16_ptk710_ftk710_ftk600_f8_res224", "K600", "87.8"),
    _classifier("l16_ptk710_ftk710_ftk600_f8_res224", "K600", "90.4"),
    _classifier("l16_ptk710_ftk710_ftk600_f16_res224", "K600", "90.5"),
    _classifier("b16_ptk710_ftk710_ftk700_f8_res224", "K700", "78.5"),
    _classifier("l16_ptk710_ftk710_ftk700_f8_res224", "K700", "83.2"),
    _classifier("l16_ptk710_ftk710_ftk700_f16_res224", "K700", "83.6"),
    _classifier("b16_ptk710_ftk710_ftk400_ftmitv1_f8_res224", "MiT", "44.6"),
    _classifier(
        "b16_ptk710_ftk710_ftk400_ftmitv1_f8_res384",
        "MiT",
        "45.5",
        "the zoo calls it UMT-L/16; file and script are of base",
    ),
    _classifier("l16_ptk710_ftk710_ftk400_ftmitv1_f8_res224", "MiT", "48.0", _FRAMES),
    _classifier("l16_ptk710_ftk710_ftk400_ftmitv1_f8_res384", "MiT", "48.7", _FRAMES),
    _classifier("b16_ptk710_ftk710_ftssv2_f8_res224", "SSv2", "70.8", _K710),
    _classifier("l16_ptk710_ftk710_ftssv2_f8_res224", "SSv2", "74.7", _K710),
)
