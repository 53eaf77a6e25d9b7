"""Unmasked Teacher, fine-tuning: a classifier from its student, or from Kinetics.

    ivj train --config=configs/umt/finetune.py:recipe=b_k710 \\
        --workdir=runs/k710 --config.data.train=shards/ --config.init_from=runs/umt

Options after the colon (comma separated):
  recipe    SIZE_DATA, a row of RECIPES below: b | l, then the data, then 16f for 16 frames in place
            of 8, or 384 for pixels in place of 224; docs/recipes.md lists them
  smoke     the recipe in small: three steps and its evaluation on any set, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts. What they share: rates for 256 crops, layer-wise learning
rates, RandAugment, random resized crops, random erasing, mixup and CutMix, label smoothing, drop
path; one frame of each of T parts; no clipping. `start` of a row is the row whose model it begins
with, for `--config.init_from`; empty is the student of its size. Positions of other grids than 8 x
14 x 14 are resized from that one.

From Kinetics-710 to 400, 600 or 700 the head keeps its rows: the first 400 for Kinetics-400, whose
classes must then be in the order of Kinetics-710, rows of the same name for the other two
(`--config.head_rows`, as in configs/internvideo2/finetune.py).

Where script and model zoo differ, the rows have the training of the script and the test of the zoo:
the scripts of 16 frames test one crop, that of L at 384 pixels six clips. The 384-pixel scripts
name the Kinetics-400 model as their start, although their few epochs at a small rate would fit a
start from the 224-pixel model of Moments in Time. For a tiny model take
configs/videomae/finetune.py:size=tiny with `--config.model.tubelet=1`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from internvideo_jax.config import TrainConfig
from internvideo_jax.families.umt.model import CLASSIFIER
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.recipes import finetuning
from internvideo_jax.recipes.options import check_known, config_dict, parse_arg
from internvideo_jax.recipes.smoke import sized

SIZES = {"b": "base", "l": "large"}


@dataclasses.dataclass(frozen=True)
class Recipe(finetuning.SteppedRecipe):
    """A released script, by what differs from the others."""

    protocol: str = "umt/kinetics"


LARGE: dict[str, Any] = {"layer_decay": 0.85, "drop_path": 0.2}
SOMETHING: dict[str, Any] = {"sampling": "segments", "flip": "off", "protocol": "umt/something"}
MIT_384: dict[str, Any] = {"warmup": 1, "repeats": 1, "weight_decay": 0.1, "pixels": 384}


def _kinetics() -> dict[str, Recipe]:
    """Kinetics-400, 600 and 700 from Kinetics-710."""
    found = {}
    for data, base, large, longer in (
        ("k400", "87.4", "90.3", "90.6"),
        ("k600", "87.8", "90.4", "90.5"),
        ("k700", "78.5", "83.2", "83.6"),
    ):
        rows: dict[str, Any] = {"warmup": 1, "head_rows": "first" if data == "k400" else "names"}
        one: dict[str, Any] = {**rows, **LARGE, "start": "l_k710"}
        found[f"b_{data}"] = Recipe(256, 2e-5, 5, start="b_k710", reported=base, **rows)
        found[f"l_{data}"] = Recipe(256, 1e-5, 5, reported=large, **one)
        found[f"l_{data}_16f"] = Recipe(128, 1e-5, 5, frames=16, reported=longer, **one)
    return found


RECIPES = {
    "b_k710": Recipe(256, 2e-4, 35, warmup=2, reported="81.9"),
    "l_k710": Recipe(256, 1e-4, 20, warmup=2, reported="86.0", **LARGE),
    **_kinetics(),
    "b_mit": Recipe(512, 1e-4, 40, repeats=1, start="b_k400", reported="44.6"),
    "l_mit": Recipe(512, 1e-4, 20, repeats=1, start="l_k400", reported="48.0", **LARGE),
    "b_mit_384": Recipe(256, 1e-5, 4, start="b_k400", reported="45.5", **MIT_384),
    "l_mit_384": Recipe(128, 1e-5, 4, start="l_k400", reported="48.7", **MIT_384, **LARGE),
    "b_ssv2": Recipe(256, 2e-4, 30, reported="70.8", **SOMETHING),
    "l_ssv2": Recipe(256, 4e-4, 14, warmup=4, reported="74.7", **SOMETHING, **LARGE),
}


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(arg, recipe="b_k710", smoke=False, small=False)
    check_known(options, recipe=RECIPES)
    return config_dict(sized(released(options["recipe"]), options))


def released(name: str) -> TrainConfig:
    """The recipe of a released script, by its name in RECIPES."""
    recipe = RECIPES[name]
    return recipe.config(
        VideoMAEClassifierConfig.of_size(
            SIZES[name.partition("_")[0]],
            frames=recipe.frames,
            resolution=recipe.pixels,
            drop_path=recipe.drop_path,
            head_dropout=recipe.head_dropout,
            remat="attention",
            **CLASSIFIER,
        )
    )
