"""The published UniFormerV2 checkpoints: rows of its model zoo. Only data; see `weights.zoo`."""

from __future__ import annotations

from typing import Any

from internvideo_jax.weights.entry import CLASSES, OSS, WHOLE, Entry, Protocol

CONFIG = "configs/uniformerv2/finetune.py:"
SIZES = {"b16_224": "base", "l14_224": "large", "l14_336": "large336"}
# Segments x crops that the recipes have; a row of the zoo with others gets settings.
RECIPE_VIEWS = {"kinetics": (4, 3), "moments": (4, 3), "something": (1, 3), "activitynet": (10, 3)}
FROZEN_VIEWS = (3, 1)
FOLDERS = {"MiT": "mitv1", "SSv1": "sthv1", "SSv2": "sthv2", "ActivityNet": "anet", "HACS": "hacs"}


def _entry(
    file: str, data: str, start: str, top1: str, clips: int, crops: int, note: str = ""
) -> Entry:
    """`file` ends in SIZE_FRAMESxPIXELS, which are read from it."""
    family = {"MiT": "moments", "SSv1": "something", "SSv2": "something"}.get(data, "kinetics")
    family = "activitynet" if data in ("ActivityNet", "HACS") else family
    backbone, clip = file.rsplit("_", 2)[1:]
    frames, pixels = map(int, clip.split("x"))
    size, frozen = SIZES[f"{backbone}_{pixels}"], file.startswith("frozen")
    options = f"data={family},start={start},size={size}"
    options += ",backbone=frozen" * frozen
    first = 16 if family in ("something", "activitynet") else 8
    if not frozen and (start, size) == ("k710", "large336"):
        first = 32  # of this recipe
    options += f",frames={frames}" * (frames != first)
    usual = FROZEN_VIEWS if frozen else RECIPE_VIEWS[family]
    settings = [
        f"--config.evals.test.views.{name}={value}"
        for name, value, recipe in zip(("clips", "crops"), (clips, crops), usual, strict=True)
        if value != recipe
    ]
    changes: dict[str, Any] = {"style": "something" if family == "something" else "kinetics"}
    if frozen:
        changes["frozen"] = True
    return Entry(
        name=f"uniformerv2/{file}",
        file=f"{file}.pyth",
        url=f"{OSS}/uniformerv2/{FOLDERS.get(data, data.lower())}/{file}.pyth",
        licence="Apache-2.0",
        kind="uniformerv2",
        size=size,
        data=data,
        classes=CLASSES[data],
        frames=frames,
        stride=WHOLE,
        pixels=pixels,
        changes=changes,
        config=CONFIG + options,
        settings=tuple(settings),
        protocol=Protocol(clips, crops, "stepped", "probability_sum"),
        reported=top1,
        note=note,
    )


# Rows: file name without `.pyth`, data, what it starts from, top-1, clips, crops.
_NO_K710 = "accuracy not stated"
_FROM_K400 = "starts from the Kinetics-400 model"
UNIFORMERV2 = (
    _entry("k710_uniformerv2_b16_8x224", "K710", "clip", "", 4, 3, _NO_K710),
    _entry("k710_uniformerv2_l14_8x224", "K710", "clip", "", 4, 3, _NO_K710),
    _entry("k710_uniformerv2_l14_8x336", "K710", "clip", "", 4, 3, _NO_K710),
    _entry("frozen_k710_uniformerv2_l14_8x336", "K710", "clip", "", 3, 1, _NO_K710),
    _entry("k400_uniformerv2_b16_8x224", "K400", "clip", "84.4", 4, 3),
    _entry("k400_k710_uniformerv2_b16_8x224", "K400", "k710", "85.6", 4, 3),
    _entry("k400_k710_uniformerv2_l14_8x224", "K400", "k710", "88.8", 4, 3),
    _entry("k400_k710_uniformerv2_l14_16x224", "K400", "k710", "89.1", 4, 3),
    _entry("k400_k710_uniformerv2_l14_32x224", "K400", "k710", "89.3", 2, 3),
    _entry("k400_k710_uniformerv2_l14_32x336", "K400", "k710", "89.7", 2, 3),
    _entry("k400_k710_uniformerv2_l14_64x336", "K400", "k710", "90.0", 2, 3),
    _entry("frozen_k400_uniformerv2_l14_8x336", "K400", "clip", "86.7", 3, 1),
    _entry("frozen_k400_k710_uniformerv2_l14_8x336", "K400", "k710", "87.8", 3, 1),
    _entry("frozen_k400_k710_uniformerv2_l14_32x336", "K400", "k710", "88.9", 4, 3),
    _entry("k600_uniformerv2_b16_8x224", "K600", "clip", "85.0", 4, 3),
    _entry("k600_k710_uniformerv2_b16_8x224", "K600", "k710", "86.1", 4, 3),
    _entry("k600_k710_uniformerv2_l14_8x224", "K600", "k710", "89.0", 4, 3),
    _entry("k600_k710_uniformerv2_l14_16x224", "K600", "k710", "89.4", 4, 3),
    _entry("k600_k710_uniformerv2_l14_32x224", "K600", "k710", "89.5", 2, 3),
    _entry("k600_k710_uniformerv2_l14_32x336", "K600", "k710", "89.9", 2, 3),
    _entry("frozen_k600_uniformerv2_l14_8x336", "K600", "clip", "87.4", 3, 1),
    _entry("frozen_k600_k710_uniformerv2_l14_8x336", "K600", "k710", "88.2", 3, 1),
    _entry("frozen_k600_k710_uniformerv2_l14_32x336", "K600", "k710", "89.2", 4, 3),
    _entry("k700_uniformerv2_b16_8x224", "K700", "clip", "75.8", 4, 3),
    _entry("k700_k710_uniformerv2_b16_8x224", "K700", "k710", "76.3", 4, 3),
    _entry("k700_k710_uniformerv2_l14_8x224", "K700", "k710", "80.8", 4, 3),
    _entry("k700_k710_uniformerv2_l14_16x224", "K700", "k710", "81.2", 4, 3),
    _entry("k700_k710_uniformerv2_l14_32x224", "K700", "k710", "81.5", 2, 3),
    _entry("k700_k710_uniformerv2_l14_32x336", "K700", "k710", "82.1", 2, 3),
    _entry("frozen_k700_uniformerv2_l14_8x336", "K700", "clip", "79.6", 3, 1),
    _entry("frozen_k700_k710_uniformerv2_l14_8x336", "K700", "k710", "79.7", 3, 1),
    _entry("frozen_k700_k710_uniformerv2_l14_32x336", "K700", "k710", "80.8", 4, 3),
    _entry("mit_uniformerv2_b16_8x224", "MiT", "clip", "42.6", 4, 3, _FROM_K400),
    _entry("mit_uniformerv2_l14_8x224", "MiT", "clip", "47.0", 4, 3, _FROM_K400),
    _entry("mit_uniformerv2_l14_8x336", "MiT", "clip", "47.8", 4, 3, _FROM_K400),
    _entry("sthv1_uniformerv2_b16_16x224", "SSv1", "clip", "56.8", 1, 3),
    _entry("sthv1_uniformerv2_b16_32x224", "SSv1", "clip", "59.4", 1, 3),
    _entry("sthv1_uniformerv2_l14_16x224", "SSv1", "clip", "60.5", 1, 3),
    _entry("sthv1_uniformerv2_l14_32x224", "SSv1", "clip", "62.7", 1, 3),
    _entry("sthv2_uniformerv2_b16_16x224", "SSv2", "clip", "69.5", 1, 3),
    _entry("sthv2_uniformerv2_b16_32x224", "SSv2", "clip", "70.7", 1, 3),
    _entry("sthv2_uniformerv2_l14_16x224", "SSv2", "clip", "72.1", 1, 3),
    _entry("sthv2_uniformerv2_l14_32x224", "SSv2", "clip", "73.0", 1, 3),
    _entry("anet_uniformerv2_l14_16x224", "ActivityNet", "clip", "94.3", 10, 3, _FROM_K400),
    _entry("anet_uniformerv2_l14_32x224", "ActivityNet", "clip", "94.7", 10, 3, _FROM_K400),
    _entry("hacs_uniformerv2_l14_16x224", "HACS", "clip", "95.5", 10, 3, _FROM_K400),
    _entry("hacs_uniformerv2_l14_32x224", "HACS", "clip", "95.4", 10, 3, _FROM_K400),
)
