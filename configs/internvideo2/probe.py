"""InternVideo2 probes: attentive, linear and concatenation heads on a frozen encoder.

    ivj train --workdir=runs/probe \\
        --config=configs/internvideo2/probe.py:recipe=attentive/1b_ssv2 \\
        --config.data.train=shards/ --config.init_from=internvideo2_1b_s2.pt

Options after the colon (comma separated):
  recipe    KIND/SIZE_DATA, a row of RECIPES below: attentive trains the pool too, linear does not
  size      tiny: 48 pixels, for the built-in world and CPUs
  kind      attentive | linear, of size=tiny
  smoke     the recipe in small: three steps and its evaluation on any set, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts. What they share: 16 frames, one crop per video, neither
weight decay nor drop path, and all that fine-tuning does to clips and labels: mixup, CutMix, random
erasing and label smoothing stay on. Encoder, its tables and class token are frozen
(`optim.freeze`), with `linear` the pool as well. `pos_frames` of a row is the length of the
position table in the file it starts from: 8 in stage 1, 4 in stage 2. `start` says which weights,
for `--config.init_from`. Where a script loads stage 1 and lays stage 2 over it, the vision encoder
of stage 2 alone is the same, as it replaces every part that is used.

ActivityNet and HACS are probes as well, although their scripts lie with the fine-tuning ones; they
name a file of the 1B model, which a 6B model cannot load, so their rows start from the 6B one. Some
scripts for 6B name models, programs or options that are not in the release; their rows have the
values of the scripts.

For several learning rates and weight decays in one pass over frozen features see
docs/evaluation.md; that is another protocol, these are the published ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from internvideo_jax.config import TrainConfig
from internvideo_jax.families.internvideo2.classifier import InternVideo2ClassifierConfig
from internvideo_jax.recipes import finetuning
from internvideo_jax.recipes.options import check_known, config_dict, parse_arg
from internvideo_jax.recipes.smoke import sized

SIZES = {"1b": "1b", "6b": "6b"}
FREEZE = {"attentive": ("^encoder/",), "linear": ("^encoder/", "^pool/")}


@dataclasses.dataclass(frozen=True)
class Recipe(finetuning.SteppedRecipe):
    """A released script, by what differs from the others."""

    layer_decay: float = 1.0
    drop_path: float = 0.0
    weight_decay: float = 0.0
    min_lr: float = 0.0
    repeats: int = 1
    protocol: str = "internvideo2/probe"
    policy: str = "rand-m5-n2-mstd0.25-inc1"
    frames: int = 16
    pos_frames: int = 8
    extra_mlp: bool = False
    merge: str = "proj"


STAGE2: dict[str, Any] = {"start": "stage 2", "pos_frames": 4}
SOMETHING: dict[str, Any] = {
    "sampling": "segments",
    "flip": "off",
    "protocol": "internvideo2/something_1",
}
EXTRA: dict[str, Any] = {**SOMETHING, **STAGE2, "extra_mlp": True}
CAT: dict[str, Any] = {**SOMETHING, "merge": "cls_avgN_proj"}
UCF101: dict[str, Any] = {"warmup": 0, "sampling": "dense", "stride": 4}
UCF101["protocol"] = "internvideo2/ucf101"
HMDB51: dict[str, Any] = {"warmup": 0, "sampling": "but_last", "head_dropout": 0.3}
HMDB51["protocol"] = "internvideo2/hmdb51"
SEGMENTS: dict[str, Any] = {
    "warmup": 0,
    "head_dropout": 0.5,
    "policy": "rand-m7-n4-mstd0.5-inc1",
    "protocol": "internvideo2/activitynet",
}


def _kinetics() -> dict[str, Recipe]:
    """Kinetics-400, 600 and 700 from the attentive probe on Kinetics-710."""
    return {
        f"attentive/{size}_{data}": Recipe(
            1024,
            1e-5,
            3,
            warmup=0,
            start=f"attentive/{size}_k710",
            pos_frames=16,
            head_rows="first" if data == "k400" else "names",
        )
        for data in ("k400", "k600", "k700")
        for size in SIZES
    }


RECIPES = {
    "attentive/1b_k710": Recipe(1024, 2e-4, 25, **STAGE2),
    "attentive/6b_k710": Recipe(1024, 1e-4, 20, warmup=4, **STAGE2),
    **_kinetics(),
    # Called after Kinetics-400, the script loads the file of Kinetics-710.
    "attentive/1b_mit": Recipe(1024, 2e-4, 35, start="attentive/1b_k710", pos_frames=16),
    "attentive/6b_mit": Recipe(2048, 1e-4, 30, start="attentive/6b_k710", pos_frames=16),
    "attentive/1b_ssv2": Recipe(1024, 2e-4, 25, **EXTRA),
    "attentive/6b_ssv2": Recipe(1024, 1e-4, 20, warmup=4, **EXTRA),
    "attentive/6b_anet": Recipe(1024, 2e-4, 40, start="6b_k400", reported="95.9", **SEGMENTS),
    "attentive/6b_hacs": Recipe(1024, 2e-4, 40, start="6b_k400", reported="97.0", **SEGMENTS),
    "linear/1b_k400": Recipe(1024, 1e-3, 15, warmup=3, min_lr=1e-6),
    "linear/6b_k400": Recipe(1024, 5e-4, 9, warmup=2),
    "linear/6b_k400_stage2": Recipe(1024, 5e-4, 9, warmup=2, **STAGE2),
    "linear/1b_ssv2": Recipe(1024, 1e-4, 25, **CAT),
    "linear/6b_ssv2": Recipe(1024, 1e-4, 20, warmup=4, **CAT),
    "linear/6b_ssv2_stage2": Recipe(1024, 1e-4, 20, warmup=4, **CAT, **STAGE2),
    "linear/1b_ucf101": Recipe(512, 1e-3, 20, head_dropout=0.5, **UCF101),
    "linear/6b_ucf101": Recipe(512, 1e-3, 20, head_dropout=0.5, **UCF101),
    "linear/6b_ucf101_stage2": Recipe(512, 1e-3, 20, **UCF101, **STAGE2),
    "linear/1b_hmdb51": Recipe(512, 2e-3, 20, **HMDB51),
    "linear/6b_hmdb51": Recipe(512, 2e-3, 20, **HMDB51),
    "linear/6b_hmdb51_stage2": Recipe(512, 2e-3, 20, **HMDB51, **STAGE2),
}


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(arg, recipe="", size="", kind="attentive", smoke=False, small=False)
    name, size, kind = options["recipe"], options["size"], options["kind"]
    if size not in ("", "tiny") or (size and name):
        raise ValueError(f"size={size}: only size=tiny stands alone; else recipe=KIND/SIZE_DATA")
    check_known(options, kind=FREEZE)
    if size == "tiny":
        return config_dict(sized(tiny(kind), options))
    name = name or "attentive/1b_k710"
    check_known({"recipe": name}, recipe=RECIPES)
    return config_dict(sized(released(name), options))


def size_of(name: str) -> str:
    """The model size in the name of a recipe."""
    return SIZES[name.partition("/")[2].partition("_")[0]]


def released(name: str) -> TrainConfig:
    """The recipe of a released script, by its name in RECIPES."""
    recipe = dataclasses.replace(RECIPES[name], freeze=FREEZE[name.partition("/")[0]])
    model = InternVideo2ClassifierConfig.of_size(
        size_of(name),
        frames=recipe.frames,
        pos_frames=recipe.pos_frames,
        head_dropout=recipe.head_dropout,
        extra_mlp=recipe.extra_mlp,
        merge=recipe.merge,
    )
    return recipe.config(model)


def tiny(kind: str) -> TrainConfig:
    """48 pixels, 8 frames, nothing mixed: minutes on two CPU cores."""
    model = InternVideo2ClassifierConfig.of_size(
        "tiny", dtype="float32", scan=False, head_scale=1.0
    )
    optim = dataclasses.replace(
        finetuning.TINY_OPTIM, weight_decay=0.0, clip_norm=0.0, freeze=FREEZE[kind]
    )
    return finetuning.tiny_run(model, optim=optim, batch=32, steps=400)
