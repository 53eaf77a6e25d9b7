"""UniFormerV2: a classifier from CLIP's image transformer, or from another UniFormerV2.

    ivj train --config=configs/uniformerv2/finetune.py:size=base \\
        --workdir=runs/uniformerv2 --config.data.train=shards/ --config.init_from=clip_b16.pth

Options after the colon (comma separated):
  size      tiny | base | large | large336
  backbone  full: everything is trained
            frozen: only the global blocks and the head are; published for large336 on Kinetics,
            the other sizes take its values
  data      kinetics (400, 600, 700, 710) | moments | something (V1, V2) | activitynet (HACS too)
  start     clip: from CLIP's image transformer; ActivityNet, HACS and Moments in Time start from
            the Kinetics-400 model
            k710: from a UniFormerV2 trained on Kinetics-710, shorter and slower; Kinetics only
  frames    of a clip, where a recipe was released with more: 16, 32 or 64
  smoke     the recipe in small: three steps and its evaluation on any set, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts: one learning rate for all layers, as it stands for any
batch size; RandAugment and random resized crops, no mixing, erasing or label smoothing; one frame
of each of T parts. The test protocols are those of evaluators/protocols.py (Kinetics: 4 clips x
3 crops, whose softmax scores are added). docs/recipes.md lists the options that make a recipe with
reported accuracy and the hours that a slice is predicted to take. The head is fresh where the
number of classes differs, but for start=k710, where it keeps the rows of the classes of the same
name (`head_rows=names`).

The reference keeps them by number: the first 400 for Kinetics-400 with a frozen backbone, where the
data must have the classes in the order of Kinetics-710 (`--config.head_rows=first`), a list of
numbers for Kinetics-600 and 700, and none for Kinetics-400 with backbone=full
(`--config.head_rows=fresh`). Published files have no class names: give its list, or the
`classes.json` of a Kinetics-710 set, as `--config.head_rows=FILE`.

What freezing means: the FROZEN option of InternVideo1's copy of the code only removes the frames'
class tokens from the head and goes on training everything. The published models were made by the
original repository, which also freezes patch embedding, class token, positions, first norm and all
blocks of the image transformer. That is `backbone=frozen` here; to get what InternVideo1's copy
does, add `--config.optim.freeze="()"`.

ActivityNet: cut the training clips to their segments at ingest, leave test videos whole.
Something-Something: the reference validates on a random crop; here as everywhere on fixed ones.
`size=tiny` is for the built-in world and CPUs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipelines.config import ViewConfig
from internvideo_jax.config import OptimConfig, TrainConfig
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.families.uniformerv2.model import SIZES, UniFormerV2Config
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.recipes import finetuning
from internvideo_jax.recipes.clips import clip_for
from internvideo_jax.recipes.options import check_known, config_dict, parse_arg
from internvideo_jax.recipes.smoke import sized
from internvideo_jax.registry import suggest

BACKBONE = ("^encoder/",)  # what a frozen backbone is
# The reference spares vectors from weight decay, and these are a matrix and a 1 x 1 x D array.
DECAY_ALSO = ("^encoder/pos_embed/table$", "^temporal_cls_token$")


OBJECTIVE = Classification(smoothing=0.0, mixup=0.0, cutmix=0.0)


@dataclasses.dataclass(frozen=True)
class Recipe(finetuning.SteppedRecipe):
    """A released script, by what differs from the others; rates are those of its batch."""

    repeats: int = 1
    protocol: str = "uniformerv2/kinetics"
    style: str = "kinetics"
    drop_path: float = 0.0
    global_drop_path: float = 0.0


def _something(lr: float, reported: str) -> Recipe:
    return Recipe(
        128,
        lr,
        22,
        frames=16,
        repeats=2,
        protocol="uniformerv2/something",
        style="something",
        flip="off",
        drop_path=0.2,
        global_drop_path=0.4,
        reported=reported,
    )


# (data, start, size) -> the recipe with the shortest clips.
RECIPES = {
    ("kinetics", "clip", "base"): Recipe(256, 1e-5, 55, reported="K400 84.4, K600 85.0, K700 75.8"),
    ("kinetics", "clip", "large"): Recipe(
        512, 1e-5, 40, reported="K400 87.7, K600 88.0, K700 80.3"
    ),
    ("kinetics", "clip", "large336"): Recipe(256, 5e-6, 40),
    ("kinetics", "k710", "base"): Recipe(
        256, 2e-6, 5, warmup=1, reported="K400 85.6, K600 86.1, K700 76.3"
    ),
    ("kinetics", "k710", "large"): Recipe(
        256, 1.5e-6, 5, warmup=1, reported="K400 88.8, K600 89.0, K700 80.8"
    ),
    ("kinetics", "k710", "large336"): Recipe(
        128, 1.5e-6, 5, warmup=1, frames=32, reported="K400 89.7, K600 89.9, K700 82.1"
    ),
    ("moments", "clip", "base"): Recipe(
        512, 2e-5, 24, protocol="uniformerv2/moments", reported="42.6"
    ),
    ("moments", "clip", "large"): Recipe(
        512, 1e-5, 18, protocol="uniformerv2/moments", reported="47.0"
    ),
    ("moments", "clip", "large336"): Recipe(
        512, 1e-5, 18, protocol="uniformerv2/moments", reported="47.8"
    ),
    ("something", "clip", "base"): _something(4e-5, "SSv1 56.8, SSv2 69.5"),
    ("something", "clip", "large"): _something(2e-5, "SSv1 60.5, SSv2 72.1"),
    ("activitynet", "clip", "large"): Recipe(
        64,
        5e-6,
        20,
        frames=16,
        protocol="uniformerv2/activitynet",
        drop_path=0.2,
        global_drop_path=0.4,
        reported="ActivityNet 94.3, HACS 95.5",
    ),
}
FROZEN = {
    "clip": Recipe(
        512,
        8e-4,
        50,
        warmup=0,
        protocol="uniformerv2/frozen",
        reported="K400 86.7, K600 87.4, K700 79.6",
    ),
    "k710": Recipe(
        512,
        5e-5,
        5,
        warmup=1,
        protocol="uniformerv2/frozen",
        reported="K400 87.8, K600 88.2, K700 79.7",
    ),
}
# Longer clips -> videos per step and reported top-1; all else is as with the shortest.
LONGER = {
    ("kinetics", "k710", "large"): {
        16: (256, "K400 89.1, K600 89.4, K700 81.2"),
        32: (128, "K400 89.3, K600 89.5, K700 81.5 (2 clips)"),
    },
    ("kinetics", "k710", "large336"): {64: (128, "K400 90.0, K600 90.1, K700 82.7 (2 clips)")},
    ("something", "clip", "base"): {32: (128, "SSv1 59.4, SSv2 70.7")},
    ("something", "clip", "large"): {32: (128, "SSv1 62.7, SSv2 73.0")},
    ("activitynet", "clip", "large"): {32: (64, "ActivityNet 94.7, HACS 95.4")},
    ("frozen", "k710", "large336"): {32: (256, "K400 88.9, K600 89.2, K700 80.8")},
}


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    own = {"backbone": "full", "data": "kinetics", "start": "clip", "frames": 0}
    options = parse_arg(arg, size="base", **own, smoke=False, small=False)
    check_known(options, backbone=("full", "frozen"))
    size, backbone = options["size"], options["backbone"]
    frozen = backbone == "frozen"
    config = tiny(frozen) if size == "tiny" else released(options, frozen)
    return config_dict(sized(config, options))


def released(options: dict[str, Any], frozen: bool) -> TrainConfig:
    """The recipe of a released script, by the size and the other options."""
    size, data, start = options["size"], options["data"], options["start"]
    recipe = _recipe(size, data, start, frozen)
    if options["frames"] not in (0, recipe.frames):
        longer = LONGER.get(("frozen" if frozen else data, start, size), {})
        if options["frames"] not in longer:
            raise ValueError(
                f"no recipe with frames={options['frames']} for data={data},start={start},"
                f"size={size}; released are {', '.join(map(str, [recipe.frames, *longer]))}"
            )
        frames = options["frames"]
        batch, reported = longer[frames]
        recipe = dataclasses.replace(recipe, frames=frames, batch=batch, reported=reported)
    model = UniFormerV2Config.of_size(
        size,
        style=recipe.style,
        frames=recipe.frames,
        frozen=frozen,
        drop_path=recipe.drop_path,
        global_drop_path=recipe.global_drop_path,
        remat="full",
    )
    return dataclasses.replace(
        recipe.config(model),
        objective=OBJECTIVE,
        optim=_optim(
            frozen,
            lr=recipe.lr,
            warmup_epochs=recipe.warmup,
            b2=0.999,
            weight_decay=0.05,
            clip_norm=20.0,
        ),
        head_rows="names" if start == "k710" else "",
    )


def _optim(frozen: bool, **changes: Any) -> OptimConfig:
    return OptimConfig(
        schedule="slowfast",
        min_lr=1e-6,
        warmup_lr=1e-6,
        lr_batch=0,
        decay_also=DECAY_ALSO,
        freeze=BACKBONE if frozen else (),
        **changes,
    )


def _recipe(size: str, data: str, start: str, frozen: bool) -> Recipe:
    if size not in SIZES:
        raise ValueError(f"no recipe for size {size!r}: {suggest(size, SIZES)}")
    if frozen and data == "kinetics" and start in FROZEN:
        return FROZEN[start]
    if frozen or (data, start, size) not in RECIPES:
        asked = f"data={data},start={start},size={size}" + (",backbone=frozen" if frozen else "")
        known = "; ".join(f"data={d},start={s},size={name}" for d, s, name in RECIPES)
        raise ValueError(
            f"no recipe for {asked}; known: {known}; and backbone=frozen with data=kinetics"
        )
    return RECIPES[data, start, size]


def tiny(frozen: bool = False) -> TrainConfig:
    """48 pixels, 8 frames, every part of the model at work: minutes on two CPU cores.

    No dropout, and rates for weights that start from nothing.
    """
    changes: dict[str, Any] = {"mlp_dropout": 0.0, "head_dropout": 0.0, "frozen": frozen}
    model = UniFormerV2Config.of_size(
        "tiny",
        style="something",
        frames=8,
        drop_path=0.0,
        global_drop_path=0.0,
        dtype="float32",
        scan=False,
        **changes,
    )
    views = ViewConfig(clip=clip_for(model), crop_rule="slowfast", batch=32)
    return finetuning.tiny_run(
        model,
        Accuracy(views=views, merge="probability_sum"),
        objective=OBJECTIVE,
        optim=_optim(frozen, lr=1e-3, b2=0.95, warmup_steps=20, clip_norm=1.0),
    )
