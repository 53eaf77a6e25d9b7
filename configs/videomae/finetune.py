"""VideoMAE fine-tuning: a classifier from pre-trained weights, or from none.

    ivj train --config=configs/videomae/finetune.py:recipe=v2/b_k400 \\
        --workdir=runs/finetune --config.data.train=shards/ --config.init_from=runs/pretrain

Options after the colon (comma separated):
  recipe    SOURCE/SIZE_DATA, a row of RECIPES below: internvideo1 | v2 (VideoMAE V2) | videomae
            (MCG-NJU); docs/recipes.md lists them with initial weights, test protocol, reported
            accuracy, and the hours that a slice is predicted to take
  size      tiny | small | base | large | huge | giant: the Kinetics-400 recipe of that size, V2's
            where there is one
  smoke     the recipe in small: three steps and its evaluation on any set, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts. What they share: layer-wise learning rates, RandAugment,
random resized crops, random erasing, mixup and CutMix, label smoothing, drop path; several clips
x 3 crops in the test (evaluators/protocols.py). `start` of a row is what it begins with, for
`--config.init_from`; empty means pre-trained weights of its size; `reported` is what to expect.
Where no script was released for a dataset, the recipe takes the values of the row named in its
`like`. The number of classes comes from the data. `size=tiny` is for the built-in world and CPUs.

From Kinetics-710 to 400, 600 or 700 the head keeps its rows. InternVideo1 takes the first 400 for
Kinetics-400, so its data must have the classes in the order of Kinetics-710; in all other cases
rows are matched by name. Published files have no names: give the list that the reference ships
(`label_710to400.json` and the like) or the `classes.json` of a Kinetics-710 set as
`--config.head_rows=FILE`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipelines.config import ClipConfig, ViewConfig
from internvideo_jax.config import TrainConfig
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.recipes.finetuning import Recipe, tiny_run
from internvideo_jax.recipes.options import check_known, config_dict, parse_arg
from internvideo_jax.recipes.smoke import sized
from internvideo_jax.registry import suggest

SIZES = {"s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}


SOMETHING: dict[str, Any] = {
    "sampling": "segments",
    "protocol": "videomae/something",
    "flip": "off",
}
HMDB51: dict[str, Any] = {"stride": 2, "protocol": "videomae/hmdb51"}
H: dict[str, Any] = {"layer_decay": 0.8, "drop_path": 0.2, "head_dropout": 0.5}
H7: dict[str, Any] = {**H, "protocol": "internvideo1/kinetics_h"}
G: dict[str, Any] = {"layer_decay": 0.9, "drop_path": 0.25}
# UCF101 and HMDB51, some ten thousand clips.
G_SMALL: dict[str, Any] = {"layer_decay": 0.9, "drop_path": 0.35, "head_dropout": 0.5}
G_SMALL["start"] = "v2/g_k710"
B_SMALL: dict[str, Any] = {"layer_decay": 0.7, "drop_path": 0.2, "head_dropout": 0.5}
B_SMALL["min_lr"] = 1e-5
# Kinetics-400, 600 or 700 from Kinetics-710: three epochs, next to no learning rate.
H_FROM_K710: dict[str, Any] = {**H7, "warmup": 1, "start": "internvideo1/h_k710"}
G_FROM_K710: dict[str, Any] = {**G, "warmup": 1, "start": "v2/g_k710", "head_rows": "names"}

RECIPES = {
    # InternVideo1/Pretrain/VideoMAE. Pre-trained on UnlabeledHybrid for 800 epochs.
    "internvideo1/b_k400": Recipe(512, 1e-3, 100, reported="81.52 / 94.88, InternVideo1"),
    "internvideo1/b_k400_sparse": Recipe(
        512, 1e-3, 100, sampling="sparse", protocol="internvideo1/sparse_b"
    ),
    "internvideo1/b_k700": Recipe(512, 1e-3, 100, like="internvideo1/b_k400"),
    "internvideo1/b_k710": Recipe(
        512, 1e-3, 100, reported="79.33 / 94.03, InternVideo1", like="internvideo1/b_k400"
    ),
    "internvideo1/b_ssv2": Recipe(
        256, 2e-3, 25, layer_decay=0.65, reported="71.22 / 93.31, InternVideo1", **SOMETHING
    ),
    "internvideo1/b_ssv1": Recipe(
        256, 2e-3, 25, layer_decay=0.65, like="internvideo1/b_ssv2", **SOMETHING
    ),
    "internvideo1/b_anet": Recipe(256, 1e-3, 100, protocol="internvideo1/activitynet"),
    "internvideo1/l_k400": Recipe(192, 2e-3, 40, drop_path=0.2),
    "internvideo1/l_k700": Recipe(192, 2e-3, 40, drop_path=0.2),
    "internvideo1/l_k710": Recipe(192, 2e-3, 40, drop_path=0.2, like="internvideo1/l_k400"),
    "internvideo1/l_ssv2": Recipe(384, 5e-4, 30, drop_path=0.2, repeats=1, **SOMETHING),
    "internvideo1/l_ssv1": Recipe(
        384, 5e-4, 30, drop_path=0.2, repeats=1, like="internvideo1/l_ssv2", **SOMETHING
    ),
    "internvideo1/h_k400": Recipe(128, 1e-3, 35, **H7),
    "internvideo1/h_k400_sparse": Recipe(
        256, 3e-4, 75, repeats=1, sampling="sparse", protocol="internvideo1/sparse_h", **H
    ),
    # These two scripts leave the number of devices open: 32 as in h_k400, with 4 videos each.
    "internvideo1/h_k600": Recipe(128, 1e-3, 40, **H7),
    "internvideo1/h_k710": Recipe(128, 1e-3, 40, **H7),
    "internvideo1/h_k600_k400": Recipe(
        128, 5e-4, 15, warmup=3, start="internvideo1/h_k600", **{**H7, "drop_path": 0.3}
    ),
    "internvideo1/h_k700": Recipe(256, 3e-4, 75, repeats=1, **H7),
    "internvideo1/h_k710_k400": Recipe(32, 2e-6, 3, head_rows="first", **H_FROM_K710),
    "internvideo1/h_k710_k600": Recipe(32, 2e-6, 3, head_rows="names", **H_FROM_K710),
    "internvideo1/h_k710_k700": Recipe(32, 2e-6, 3, head_rows="names", **H_FROM_K710),
    "internvideo1/h_ssv2": Recipe(
        256, 5e-4, 30, repeats=1, **SOMETHING, **{**H, "head_dropout": 0.3}
    ),
    "internvideo1/h_ssv1": Recipe(
        256,
        5e-4,
        30,
        repeats=1,
        like="internvideo1/h_ssv2",
        **SOMETHING,
        **{**H, "head_dropout": 0.3},
    ),
    "internvideo1/h_hmdb51": Recipe(
        24,
        5e-4,
        15,
        start="internvideo1/h_k710",
        reported="89.64, 89.92, 88.35 (splits 1 to 3), InternVideo1",
        like="v2/g_k710_hmdb51",
        **H,
        **HMDB51,
    ),
    "internvideo1/h_ucf101": Recipe(
        24, 1e-3, 50, start="internvideo1/h_k710", like="v2/g_k710_ucf101", **H
    ),
    # OpenGVLab/VideoMAEv2.
    "v2/b_k400": Recipe(512, 7e-4, 90),
    "v2/b_k710": Recipe(512, 7e-4, 90),
    "v2/b_ssv2": Recipe(256, 2e-3, 25, layer_decay=0.65, **SOMETHING),
    "v2/l_k400": Recipe(192, 2e-3, 35, drop_path=0.2),
    "v2/l_ssv2": Recipe(192, 5e-4, 20, drop_path=0.2, **SOMETHING),
    "v2/h_k400": Recipe(128, 1e-3, 40, **H),
    "v2/h_k600": Recipe(128, 1e-3, 40, **H),
    "v2/h_k710": Recipe(128, 1e-3, 40, **H),
    "v2/h_ssv2": Recipe(128, 5e-4, 20, layer_decay=0.8, drop_path=0.2, **SOMETHING),
    "v2/g_k400": Recipe(
        192,
        1e-3,
        30,
        layer_decay=0.9,
        drop_path=0.2,
        weight_decay=0.1,
        reported="87.2 / 97.4, VideoMAE V2",
    ),
    "v2/g_k710": Recipe(
        96,
        1e-3,
        35,
        layer_decay=0.9,
        drop_path=0.3,
        weight_decay=0.1,
        clip_norm=5.0,
        reported="83.8 / 96.4, VideoMAE V2",
    ),
    "v2/g_k710_k400": Recipe(96, 1e-5, 3, reported="88.4 / 98.0, VideoMAE V2", **G_FROM_K710),
    "v2/g_k710_k600": Recipe(96, 1e-5, 3, reported="88.8 / 98.2, VideoMAE V2", **G_FROM_K710),
    "v2/g_ssv2": Recipe(96, 3e-4, 20, reported="77.0 / 95.9, VideoMAE V2", **G, **SOMETHING),
    "v2/g_k710_ucf101": Recipe(24, 1e-3, 50, reported="99.6 / 100, VideoMAE V2", **G_SMALL),
    "v2/g_k710_hmdb51": Recipe(
        24, 5e-4, 15, reported="88.1 / 98.5, VideoMAE V2", **G_SMALL, **HMDB51
    ),
    # MCG-NJU/VideoMAE, pre-trained on the same set for the number of epochs in the name.
    "videomae/s_k400": Recipe(384, 5e-4, 150, reported="79.0 / 93.8, VideoMAE"),
    "videomae/b_k400_800e": Recipe(512, 1e-3, 100, repeats=1, reported="80.0 / 94.4, VideoMAE"),
    "videomae/b_k400_1600e": Recipe(384, 5e-4, 75, reported="81.5 / 95.1, VideoMAE"),
    "videomae/l_k400": Recipe(128, 2e-3, 35, reported="85.2 / 96.8, VideoMAE"),
    "videomae/h_k400": Recipe(
        512,
        1e-3,
        50,
        min_lr=1e-5,
        drop_path=0.2,
        head_dropout=0.5,
        reported="86.6 / 97.1, VideoMAE",
    ),
    "videomae/s_ssv2": Recipe(
        384, 1e-3, 40, layer_decay=0.7, reported="66.8 / 90.3, VideoMAE", **SOMETHING
    ),
    "videomae/b_ssv2_800e": Recipe(
        512, 5e-4, 50, repeats=1, reported="69.6 / 92.0, VideoMAE", **SOMETHING
    ),
    "videomae/b_ssv2_2400e": Recipe(384, 5e-4, 30, reported="70.8 / 92.4, VideoMAE", **SOMETHING),
    # 16 videos on each of the 8 devices that its author names elsewhere.
    "videomae/b_ucf101": Recipe(128, 5e-4, 100, **B_SMALL, reported="91.3 / 98.5, VideoMAE"),
    "videomae/b_hmdb51": Recipe(
        128, 5e-4, 100, **B_SMALL, reported="62.6, VideoMAE", like="videomae/b_ucf101"
    ),
}
DEFAULTS = {
    "small": "videomae/s_k400",
    "base": "v2/b_k400",
    "large": "v2/l_k400",
    "huge": "v2/h_k400",
    "giant": "v2/g_k400",
}


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(arg, recipe="", size="", smoke=False, small=False)
    name, size = options["recipe"], options["size"]
    if size == "tiny" and not name:
        return config_dict(sized(tiny(), options))
    if size and size not in DEFAULTS:
        raise ValueError(f"no recipe for size {size!r}: {suggest(size, [*DEFAULTS, 'tiny'])}")
    name = name or DEFAULTS[size or "base"]
    check_known({"recipe": name}, recipe=RECIPES)
    if size and size != size_of(name):
        raise ValueError(f"recipe {name} is of size {size_of(name)}, not {size}; leave out size")
    return config_dict(sized(released(name), options))


def size_of(name: str) -> str:
    """The model size in the name of a recipe."""
    return SIZES[name.partition("/")[2].partition("_")[0]]


def released(name: str) -> TrainConfig:
    """The recipe of a released script, by its name in RECIPES."""
    recipe = RECIPES[name]
    model = VideoMAEClassifierConfig.of_size(
        size_of(name),
        drop_path=recipe.drop_path,
        head_dropout=recipe.head_dropout,
        remat="attention",
    )
    return recipe.config(model)


def tiny() -> TrainConfig:
    """48 pixels, 8 frames, 0.5 M parameters."""
    clip = ClipConfig(frames=8, stride=2, resolution=48, sampling="window")
    model = VideoMAEClassifierConfig.of_size(
        "tiny",
        frames=clip.frames,
        resolution=clip.resolution,
        pos_table="separable",
        dtype="float32",
        scan=False,
        head_scale=1.0,
    )
    views = ViewConfig(clip=dataclasses.replace(clip, sampling="dense"), batch=32)
    return tiny_run(model, views, clip=clip)
