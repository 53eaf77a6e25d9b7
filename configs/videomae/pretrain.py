"""VideoMAE pre-training: reconstruct the hidden nine tenths of a clip.

    ivj train --config=configs/videomae/pretrain.py:size=base \\
        --workdir=runs/pretrain --config.data.train=shards/

Options after the colon (comma separated):
  size      tiny | small | base | large | huge | giant
  recipe    videomae (MCG-NJU) | internvideo1 | v2 (VideoMAE V2, dual masking)
  monitor   follow a nearest-neighbour accuracy during training (needs labels), and whether features
            collapse
  probes    end with a linear and an attentive probe on frozen features (needs labels)
  smoke     the recipe in small: three steps and its evaluation on any set, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Values are those of the released scripts: base rates for 256 clips, tube mask 0.9, 16 frames at
stride 4 (Something-Something: --config.data.clip.stride=2), only a multi-scale crop. The V2 scripts
and InternVideo1's huge one take four crops per decoded video; `data.global_batch` counts the crops.
`size=tiny` is for the built-in world and CPUs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from internvideo_jax.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig
from internvideo_jax.evaluators.reconstruction import Reconstruction
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.recipes.feature_evals import on_features
from internvideo_jax.recipes.options import config_dict, parse_arg
from internvideo_jax.recipes.smoke import sized
from internvideo_jax.registry import suggest


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the released pre-training scripts."""

    decoder_depth: int
    batch: int  # videos per step
    lr: float = 1.5e-4  # for 256 videos
    min_lr: float = 1e-5
    epochs: int = 800
    warmup: int = 40  # epochs
    decoder_ratio: float = 0.0  # running-cell decoder mask
    clip_norm: float = 0.0
    repeats: int = 1  # crops per video
    # What fits 32 clips (huge: 16) on a TPU v5e; the giant gains by keeping less.
    remat: str = "attention"


V2 = {"lr": 1e-3, "epochs": 300, "warmup": 30, "decoder_ratio": 0.5, "repeats": 4}
RECIPES = {
    ("videomae", "small"): Recipe(4, 1024, epochs=1600),
    ("videomae", "base"): Recipe(4, 2048, epochs=1600),
    ("videomae", "large"): Recipe(12, 512, epochs=1600),
    ("videomae", "huge"): Recipe(12, 1024, epochs=1600),
    ("internvideo1", "base"): Recipe(4, 2048),
    ("internvideo1", "large"): Recipe(12, 1152),
    ("internvideo1", "huge"): Recipe(
        8, 384, lr=1e-3, min_lr=5e-5, epochs=300, warmup=15, repeats=4
    ),
    ("v2", "base"): Recipe(4, 1024, **{**V2, "epochs": 200, "warmup": 20}),
    ("v2", "large"): Recipe(4, 1536, **V2),
    ("v2", "huge"): Recipe(4, 2048, **V2),
    ("v2", "giant"): Recipe(4, 2048, **{**V2, "lr": 6e-4}, clip_norm=0.02, remat="full"),
}


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    options = parse_arg(
        arg, size="base", recipe="videomae", monitor=False, probes=False, smoke=False, small=False
    )
    size, name = options["size"], options["recipe"]
    if size == "tiny":
        return config_dict(sized(tiny(options), options))
    if (name, size) not in RECIPES:
        known = [f"{n}/{s}" for n, s in RECIPES]
        hint = suggest(f"{name}/{size}", [*known, f"{name}/tiny"])
        raise ValueError(f"no recipe {name}/{size}: {hint}")
    recipe = RECIPES[name, size]
    # MCG-NJU's ViT-H has a wider decoder than the other two.
    preset = "huge_nju" if (name, size) == ("videomae", "huge") else size
    clip = ClipConfig(frames=16, stride=4, resolution=224, sampling="window")
    views = ViewConfig(clip=dataclasses.replace(clip, sampling="dense"), batch=64)
    evals = {
        "reconstruction": Reconstruction(views=views, mask_ratio=0.9, scale=1),
        **on_features(options, views, every=5000),
    }
    config = TrainConfig(
        model=PretrainConfig.of_size(
            preset, decoder_depth=recipe.decoder_depth, remat=recipe.remat
        ),
        objective=MaskedPixels(mask_ratio=0.9, decoder_ratio=recipe.decoder_ratio),
        data=DataConfig(
            global_batch=recipe.batch * recipe.repeats,
            repeats=recipe.repeats,
            clip=clip,
            crop="multiscale",
        ),
        optim=OptimConfig(
            lr=recipe.lr,
            min_lr=recipe.min_lr,
            lr_batch=256 * recipe.repeats,  # the rates count videos
            warmup_epochs=recipe.warmup,
            clip_norm=recipe.clip_norm,
        ),
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(every=50),
        evals=evals,
        epochs=recipe.epochs,
    )
    return config_dict(sized(config, options))


def tiny(options: dict[str, Any]) -> TrainConfig:
    """48 pixels, 8 frames, 0.6 M parameters: minutes on two CPU cores.

    The flat position table of the published models needs twice as many steps to leave the plateau
    at this size, hence the separable one; the mask is thinner because 36 tokens a frame pair hold
    less redundancy than 196. Four layers are unrolled: a scan costs an eighth of a step on CPUs.
    """
    clip = ClipConfig(frames=8, stride=2, resolution=48, sampling="window")
    views = ViewConfig(clip=dataclasses.replace(clip, sampling="dense"), batch=32)
    evals = {
        "reconstruction": Reconstruction(views=views, mask_ratio=0.85, scale=3),
        **on_features(options, views, every=500),
    }
    return TrainConfig(
        model=PretrainConfig.of_size(
            "tiny",
            decoder_depth=2,
            frames=8,
            resolution=48,
            pos_table="separable",
            dtype="float32",
            scan=False,
        ),
        objective=MaskedPixels(mask_ratio=0.85),
        data=DataConfig(global_batch=32, clip=clip, crop="multiscale"),
        optim=OptimConfig(lr=1e-3, min_lr=1e-5, lr_batch=0, warmup_steps=100),
        checkpoint=CheckpointConfig(every=200),
        log=LogConfig(every=50),
        evals=evals,
        steps=2000,
    )
