"""InternVideo2 fine-tuning: a classifier from a student of stage 1, a distilled one, or Kinetics.

    ivj train --config=configs/internvideo2/finetune.py:recipe=b_k710 \\
        --workdir=runs/k710 --config.data.train=shards/ --config.init_from=runs/distill

Options after the colon (comma separated):
  recipe    SIZE_DATA, a row of RECIPES below: s | b | l | 1b | 6b, then the data, then 16f for 16
            frames in place of 8, or 336 for pixels in place of 224; docs/recipes.md lists them
  size      tiny: 48 pixels, for the built-in world and CPUs
  smoke     the recipe in small: three steps and its evaluation on any set, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts. What they share: rates for 256 crops, layer-wise learning
rates, RandAugment, random resized crops, random erasing, mixup and CutMix, label smoothing, drop
path; one frame of each of T parts; no clipping. `start` of a row is the row whose model it begins
with, for `--config.init_from`; empty is the student of its size, distilled for s, b and l, of stage
1 for 1b and 6b. Position tables are resized where frames or pixels differ.

From Kinetics-710 to 400, 600 or 700 the head keeps its rows: the first 400 for Kinetics-400, whose
classes must then be in the order of Kinetics-710, rows of the same name for the other two.
Published files have no names: give the list that the reference ships (`label_mixto600.json`) or the
`classes.json` of a Kinetics-710 set as `--config.head_rows=FILE`.

The released 336-pixel script cannot run (the constructor of its model has 224 built in); the row
has its values. The reference recomputes some of the lower layers in the backward pass; here a
policy holds for all of them (`--config.model.remat`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from internvideo_jax.config import TrainConfig
from internvideo_jax.families.internvideo2.classifier import InternVideo2ClassifierConfig
from internvideo_jax.recipes import finetuning
from internvideo_jax.recipes.options import check_known, config_dict, parse_arg
from internvideo_jax.recipes.smoke import sized

SIZES = {"s": "small", "b": "base", "l": "large", "1b": "1b", "6b": "6b"}


@dataclasses.dataclass(frozen=True)
class Recipe(finetuning.SteppedRecipe):
    """A released script, by what differs from the others."""

    protocol: str = "internvideo2/kinetics"
    remat: str = "attention"


DISTILLED: dict[str, Any] = {"layer_decay": 0.75, "drop_path": 0.1}
B1: dict[str, Any] = {"layer_decay": 0.9, "drop_path": 0.3}
B6: dict[str, Any] = {"layer_decay": 0.915, "drop_path": 0.35, "remat": "full"}
MIT_336: dict[str, Any] = {**B6, "drop_path": 0.4, "weight_decay": 0.1, "pixels": 336}
MIT_336 |= {"warmup": 0, "min_lr": 0.0, "repeats": 1}
B1_SOMETHING: dict[str, Any] = {**B1, "layer_decay": 0.915}
B6_SOMETHING: dict[str, Any] = {**B6, "drop_path": 0.4, "min_lr": 0.0}
SOMETHING: dict[str, Any] = {"sampling": "segments", "flip": "off"}
LONG: dict[str, Any] = {"frames": 16, "remat": "full"}


def _kinetics() -> dict[str, Recipe]:
    """Kinetics-400, 600 and 700 from Kinetics-710."""
    reported = {
        "k400": ("85.4", "88.4", "90.4", "91.3", "91.9", "91.6", "92.1"),
        "k600": ("86.0", "88.9", "90.6", "91.4", "91.7", "91.6", "91.9"),
        "k700": ("75.7", "80.5", "83.5", "85.0", "85.7", "85.4", "85.9"),
    }
    found = {}
    for data, (*distilled, b1, b6, b1_long, b6_long) in reported.items():
        rows: dict[str, Any] = {"head_rows": "first" if data == "k400" else "names"}
        for size, value in zip("sbl", distilled, strict=True):
            start = f"{size}_k710"
            found[f"{size}_{data}"] = Recipe(
                1024, 2e-5, 5, warmup=1, start=start, reported=value, **DISTILLED, **rows
            )
        one: dict[str, Any] = {"warmup": 0, "start": "1b_k710", **rows, **B1}
        six: dict[str, Any] = {"warmup": 0, "start": "6b_k710", **rows, **B6}
        found[f"1b_{data}"] = Recipe(256, 1e-5, 3, reported=b1, **one)
        found[f"6b_{data}"] = Recipe(256, 1e-5, 1, reported=b6, **six)
        found[f"1b_{data}_16f"] = Recipe(256, 1e-5, 3, reported=b1_long, **one | LONG)
        found[f"6b_{data}_16f"] = Recipe(128, 1e-5, 1, reported=b6_long, **six | LONG)
    return found


def _something(batch: int, lr: float, epochs: int, clips: int, **changes: Any) -> Recipe:
    """Something-Something, with `clips` in the test."""
    protocol = f"internvideo2/something_{clips}"
    return Recipe(batch, lr, epochs, protocol=protocol, **SOMETHING, **changes)


RECIPES = {
    "s_k710": Recipe(256, 2e-4, 35, reported="79.6", **DISTILLED),
    "b_k710": Recipe(256, 2e-4, 20, warmup=4, reported="83.5", **DISTILLED),
    "l_k710": Recipe(256, 2e-4, 14, warmup=2, reported="86.2", **DISTILLED),
    "1b_k710": Recipe(256, 5e-5, 9, warmup=2, reported="87.6", **B1),
    "6b_k710": Recipe(256, 2.5e-5, 6, warmup=1, min_lr=0.0, reported="88.1", **B6),
    **_kinetics(),
    "1b_mit": Recipe(256, 5e-5, 15, repeats=1, start="1b_k400", reported="50.8", **B1),
    "6b_mit": Recipe(
        256, 2.5e-5, 8, warmup=2, min_lr=0.0, repeats=1, start="6b_k400", reported="51.0", **B6
    ),
    "6b_mit_336": Recipe(256, 1e-5, 2, start="6b_mit", reported="51.2", **MIT_336),
    "1b_ssv1": _something(256, 1e-4, 9, 2, warmup=3, reported="68.5", **B1_SOMETHING),
    "6b_ssv1": _something(256, 7.5e-5, 7, 4, warmup=2, reported="69.7", **B6_SOMETHING),
    "s_ssv2": _something(256, 5e-4, 30, 4, reported="71.6", **DISTILLED),
    # The scripts of these two are taken to be swapped. The one called B14 names the L/14 model with
    # weights of S/14, has ten epochs, layer decay 0.85 and drop path 0.2, and tests 2 clips,
    # which fits an L/14. The one called L14 names the S/14 model and has the values of the S/14
    # script with twice the batch. Each row has the values that fit its size.
    "b_ssv2": _something(512, 5e-4, 30, 4, reported="73.5", **DISTILLED),
    "l_ssv2": _something(
        256, 2e-4, 10, 2, warmup=2, layer_decay=0.85, drop_path=0.2, reported="76.4"
    ),
    "1b_ssv2": _something(256, 1e-4, 8, 2, warmup=3, reported="77.1", **B1_SOMETHING),
    "6b_ssv2": _something(256, 7.5e-5, 6, 5, warmup=2, reported="77.5", **B6_SOMETHING),
}


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(arg, recipe="", size="", smoke=False, small=False)
    name, size = options["recipe"], options["size"]
    if size not in ("", "tiny") or (size and name):
        raise ValueError(f"size={size}: only size=tiny stands alone; else recipe=SIZE_DATA")
    if size == "tiny":
        return config_dict(sized(tiny(), options))
    name = name or "b_k710"
    check_known({"recipe": name}, recipe=RECIPES)
    return config_dict(sized(released(name), options))


def released(name: str) -> TrainConfig:
    """The recipe of a released script, by its name in RECIPES."""
    recipe = RECIPES[name]
    model = InternVideo2ClassifierConfig.of_size(
        SIZES[name.partition("_")[0]],
        frames=recipe.frames,
        resolution=recipe.pixels,
        drop_path=recipe.drop_path,
        head_dropout=recipe.head_dropout,
        remat=recipe.remat,
    )
    return recipe.config(model)


def tiny() -> TrainConfig:
    """48 pixels, 8 frames, every part of the model at work."""
    model = InternVideo2ClassifierConfig.of_size(
        "tiny", dtype="float32", scan=False, head_scale=1.0
    )
    return finetuning.tiny_run(model)
