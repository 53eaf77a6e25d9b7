"""Probes of any model: many heads on its frozen features, trained in one pass, the best reported.

    ivj train --config=configs/probe.py:of=videomae/pretrain,size=tiny \\
        --workdir=runs/probe --config.data.train=shards/ --config.init_from=runs/pretrain

Options after the colon (comma separated):
  of        the recipe whose model is the backbone: a file in configs/ without its ending. Options
            that are not in this list are passed on to it: size, recipe, stage ...
  head      linear | attentive | concat, see docs/evaluation.md
  smoke     the recipe in small: three steps and its evaluation on any set, in seconds
  small     batch, warm-up and length from the number of records, for sets of up to some thousands

Clips are those of the backbone's recipe; of a student whose teachers see more frames, its own.
Every pair of `model.learning_rates` and `model.weight_decays` is a head; `optim` holds the schedule
that all of them share, relative to 1. The head is chosen on the split `val`, or without one on
every tenth clip of the training split, which then trains no head. Without `init_from` the backbone
has random weights, the control.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from data_pipelines import recipe_files
from data_pipelines.config import DataConfig, ViewConfig
from internvideo_jax.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig, to_typed
from internvideo_jax.evaluators.probe_grid import ProbeGrid
from internvideo_jax.families.probe.model import ProbeConfig
from internvideo_jax.objectives.probe import Probe
from internvideo_jax.protocols import clip_of
from internvideo_jax.recipes.options import config_dict, parse_arg
from internvideo_jax.recipes.smoke import sized
from internvideo_jax.registry import suggest

HERE = Path(__file__).parent
OWN = {"of": "videomae/pretrain", "head": "attentive", "smoke": False, "small": False}
# Heads on standardised vectors take larger steps than those with matrices of their own.
GRIDS: dict[str, dict[str, Any]] = {
    "linear": {
        "learning_rates": (3e-2, 1e-2, 3e-3, 1e-3, 3e-4),
        "weight_decays": (0.0, 0.01, 0.1, 0.4),
    },
    # The grid of V-JEPA 2.
    "attentive": {
        "learning_rates": (5e-3, 3e-3, 1e-3, 3e-4, 1e-4),
        "weight_decays": (0.01, 0.1, 0.4, 0.8),
    },
}
GRIDS["concat"] = GRIDS["linear"]

# The rule of an evaluation that fits a rule of training.
VIEWS = {"window": "dense", "parts": "stepped"}


def get_config(arg: str = ""):
    """The recipe with the options behind the colon; ValueError for one that it does not have."""
    items = [item for item in (arg or "").split(",") if item]
    mine = [item for item in items if item.partition("=")[0] in OWN]
    options = parse_arg(",".join(mine), **OWN)
    if options["head"] not in GRIDS:
        raise ValueError(f"unknown head {options['head']!r}: {suggest(options['head'], GRIDS)}")
    base = recipe(options["of"], ",".join(item for item in items if item not in mine))
    config = probe(base, options["head"], tiny="size=tiny" in items)
    return config_dict(sized(config, options))


def recipe(name: str, arg: str) -> TrainConfig:
    """The recipe in configs/NAME.py with these options."""
    path = HERE / f"{name}.py"
    if not path.is_file() or path == Path(__file__):
        known = [str(p.relative_to(HERE).with_suffix("")) for p in HERE.glob("*/*.py")]
        raise ValueError(f"no recipe configs/{name}.py: {suggest(name, known)}")
    return to_typed(TrainConfig, recipe_files.load(f"{path}:{arg}"))


def probe(base: TrainConfig, head: str, *, tiny: bool) -> TrainConfig:
    """The probe of a recipe's model on clips as it takes them."""
    model, clip, frames = base.model, base.data.clip, clip_of(base.model).frames
    # A student beside a teacher of more frames reads every so many-th of the batch: here, all.
    clip = dataclasses.replace(clip, frames=frames, stride=clip.stride * clip.frames // frames)
    fixed = dataclasses.replace(clip, sampling=VIEWS.get(clip.sampling, clip.sampling))
    return TrainConfig(
        model=ProbeConfig(backbone=model, head=head, hold_out=10, **GRIDS[head]),
        objective=Probe(),
        data=DataConfig(
            global_batch=32 if tiny else 256,
            clip=clip,
            crop="multiscale" if tiny else "random_resized",
            flip="auto",
        ),
        optim=OptimConfig(
            lr=1.0,
            min_lr=0.0,
            lr_batch=0,
            warmup_steps=20 if tiny else 0,
            warmup_epochs=0.0 if tiny else 1.0,
            weight_decay=0.0,
            b2=0.999,
            clip_norm=1.0,
        ),
        checkpoint=CheckpointConfig(every=1000),
        log=LogConfig(every=50),
        evals={"test": ProbeGrid(views=ViewConfig(clip=fixed, batch=32 if tiny else 64))},
        init_whole=("^backbone/",),
        steps=400 if tiny else 0,
        epochs=0.0 if tiny else 20.0,
    )
