"""ViCLIP: clips and captions brought together, from CLIP's weights.

    ivj train --config=configs/viclip/pretrain.py:size=base \\
        --workdir=runs/viclip --config.data.train=shards/ --config.init_from=clip_b16.safetensors
    ivj train --config=configs/viclip/pretrain.py:size=base,stage=2 \\
        --workdir=runs/viclip_unmasked --config.data.train=shards/ --config.init_from=runs/viclip

Options after the colon (comma separated):
  size      tiny | base | base32 | large | large336; released are base (B/16) and large (L/14), the
            other two take their values
  stage     1: nine tenths of the patches dropped
            2: a short run on all of them, from the weights of stage 1
  text      frozen: the text encoder stays CLIP's, as released | trained
  tokenizer clip, or world for the built-in world (size=tiny is made for that one)
  smoke     the recipe in small: three steps on any set with captions, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released configs: rates as they stand, for 32768 pairs in stage 1 and 2048
in stage 2; a cosine that is cut off at a hundredth; one random frame of each of 8 parts; no decay
of biases, norms, tables and the temperature. Half an epoch of stage 2 is the first half of the
shuffled stream here, a fixed random half of the list in the reference. Where the text encoder is
trained its token embedding is decayed: the reference means to leave it out by a name that no
parameter has.

The reference leaves out captions of fewer than two words once they are cleaned; do that at ingest.
`size=tiny` is for the built-in world and CPUs: everything is trained, from nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipelines.config import AugmentConfig, DataConfig, ViewConfig
from internvideo_jax.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig
from internvideo_jax.evaluators.retrieval import TextVideoRetrieval
from internvideo_jax.families.viclip.model import SIZES, ViCLIPConfig
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.recipes.clips import clip_for
from internvideo_jax.recipes.options import config_dict, parse_arg
from internvideo_jax.recipes.smoke import sized
from internvideo_jax.registry import suggest

TEXT = ("^text/",)  # what a frozen text encoder is
WHOLE = ("^encoder/", "^text/", "^temperature$")  # what stage 2 takes over
TOKENS = ("^text/token_embed$",)  # decayed where they are trained
WORLD_VOCABULARY = 620  # of the tokenizer `world`


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the released runs."""

    batch: int  # pairs per step
    lr: float
    epochs: float
    warmup: float  # epochs
    mask_ratio: float  # share of patches that are dropped
    remat: str = "none"
    reported: str = ""  # zero-shot top-1 on Kinetics of the model trained on InternVid-10M-FLT


RECIPES = {
    ("base", 1): Recipe(32768, 2e-4, 10, 0.5, 0.9),
    ("large", 1): Recipe(32768, 4e-4, 10, 0.5, 0.9, remat="full"),
    ("base", 2): Recipe(2048, 4e-6, 0.5, 0.1, 0.0, reported="K400 58.52, K600 55.37, K700 47.09"),
    ("large", 2): Recipe(
        2048, 4e-6, 0.5, 0.1, 0.0, remat="full", reported="K400 64.80, K600 62.20, K700 54.30"
    ),
}
LIKE = {"base32": "base", "large336": "large"}
TEXTS = ("frozen", "trained")


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(
        arg, size="base", stage=1, text="frozen", tokenizer="", smoke=False, small=False
    )
    size, stage, text = options["size"], options["stage"], options["text"]
    if size not in SIZES:
        raise ValueError(f"no recipe for size {size!r}: {suggest(size, SIZES)}")
    if stage not in (1, 2):
        raise ValueError(f"stage = {stage}: expected 1 (masked) or 2 (all patches)")
    if text not in TEXTS:
        raise ValueError(f"unknown text {text!r}: {suggest(text, TEXTS)}")
    config = tiny(options) if size == "tiny" else released(options)
    if config.data.tokenizer == "world":
        model = dataclasses.replace(config.model, vocab=WORLD_VOCABULARY)
        config = dataclasses.replace(config, model=model)
    return config_dict(sized(config, options))


def released(options: dict[str, Any]) -> TrainConfig:
    """The recipe of a released script, by the size and the other options."""
    size: str = options["size"]
    recipe = RECIPES[LIKE.get(size, size), options["stage"]]
    frozen = options["text"] == "frozen"
    model = ViCLIPConfig.of_size(size, drop_path=0.1, remat=recipe.remat)
    return TrainConfig(
        model=model,
        objective=Contrastive(mask_ratio=recipe.mask_ratio),
        data=DataConfig(
            global_batch=recipe.batch,
            clip=clip_for(model, "uniform"),
            crop="random_resized",
            flip="auto",
            augment=AugmentConfig(area=(0.5, 1.0), resize="bicubic"),
            **captions(model, options["tokenizer"] or "clip"),
        ),
        optim=OptimConfig(
            schedule="floored",
            lr=recipe.lr,
            min_lr=0.01 * recipe.lr,
            lr_batch=0,
            warmup_epochs=recipe.warmup,
            weight_decay=0.2,
            b2=0.98,
            decay_also=() if frozen else TOKENS,
            freeze=TEXT if frozen else (),
        ),
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(every=50),
        evals={"retrieval": retrieval(model, batch=64)},
        init_whole=WHOLE if options["stage"] == 2 else (),
        epochs=recipe.epochs,
    )


def captions(model: ViCLIPConfig, tokenizer: str) -> dict[str, Any]:
    """Settings of the data: a random caption of each clip."""
    length = model.context
    return {"text": "random", "tokenizer": tokenizer, "text_length": length, "text_clean": True}


def retrieval(model: ViCLIPConfig, batch: int) -> TextVideoRetrieval:
    """Captions and clips of the test split found by each other, as ViCLIP was tested."""
    views = ViewConfig(clip=clip_for(model, "uniform"), crop_rule="squash", batch=batch)
    return TextVideoRetrieval(views=views)


def tiny(options: dict[str, Any]) -> TrainConfig:
    """48 pixels, 8 frames, 32 pairs a step: minutes on two CPU cores.

    The captions name directions, so nothing is flipped. The temperature starts where CLIP's did,
    which was trained from nothing too.
    """
    second = options["stage"] == 2
    model = ViCLIPConfig.of_size("tiny", temperature=0.07, dtype="float32", scan=False)
    lr = 1e-4 if second else 1e-3
    return TrainConfig(
        model=model,
        objective=Contrastive(mask_ratio=0.0 if second else 0.5),
        data=DataConfig(
            global_batch=32,
            clip=clip_for(model, "uniform"),
            crop="multiscale",
            **captions(model, options["tokenizer"] or "world"),
        ),
        optim=OptimConfig(
            schedule="floored",
            lr=lr,
            min_lr=0.01 * lr,
            lr_batch=0,
            warmup_steps=20 if second else 100,
            b2=0.98,
            decay_also=TOKENS,
            clip_norm=1.0,
        ),
        checkpoint=CheckpointConfig(every=200),
        log=LogConfig(every=50),
        evals={"retrieval": retrieval(model, batch=32)},
        init_whole=WHOLE if second else (),
        steps=200 if second else 1500,
    )
