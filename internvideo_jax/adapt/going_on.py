"""The config of a run that goes on with the objective of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from internvideo_jax.adapt.data import Clips
from internvideo_jax.config import TrainConfig

# Of the recipe's rate: the weights are good already, and their moments are not known.
RATE = 0.5
WARMUP = 0.05  # of the steps; Adam's moments begin at zero
# Fields of the config that are not for the command line here, and what is.
DECIDED = {
    "steps": "give --steps or --minutes",
    "epochs": "give --steps or --minutes",
    "init_from": "give --weights",
    "seed": "give --seeds and --first_seed",
    "data.seed": "give --seeds and --first_seed",
    "data.train": "the videos are the word behind `ivj adapt`",
    "data.eval": "the videos are the word behind `ivj adapt`",
    "data.mixture": "it goes on with one set; `ivj train --config.init_from=...` takes several",
}
TASKS = ("classification", "probe")  # objectives that learn a task, and pre-train nothing


def check_objective(config: TrainConfig, weights: str) -> None:
    """ValueError for weights of a task: how they were pre-trained is not known."""
    name = config.objective.name
    if name in TASKS:
        raise ValueError(
            f"{weights} was trained for {name}, which is no pre-training: take the weights that it "
            "started from, or say how to go on with --config=configs/videomae/pretrain.py:size=... "
            "(its decoder then starts anew)"
        )
    if config.model.traits.features is None:
        raise ValueError(
            f"config.model is {config.model.name!r}, which gives no features to probe; give the "
            "recipe of a model that does"
        )


def check_given(given: Collection[str]) -> None:
    """ValueError for fields that this command decides itself."""
    for field, instead in DECIDED.items():
        if field in given:
            raise ValueError(f"--config.{field} is decided here: {instead}")


def continued(
    config: TrainConfig,
    clips: Clips,
    weights: str,
    *,
    steps: int,
    seed: int,
    rate: float,
    given: Collection[str],
) -> TrainConfig:
    """The recipe of the weights on other clips: a new, lower schedule, and nothing else changed.

    Args:
      weights: what it starts from.
      rate: of the recipe's learning rates.
      given: fields that the command line sets, which stay so.
    """

    def unless(path: str, **changes: object) -> dict[str, object]:
        return {} if path in given else changes

    data, optim = config.data, config.optim
    # Half a set or less per step; run/small.py then chooses.
    small = data.global_batch > clips.records // 2
    data = dataclasses.replace(
        data,
        train=clips.directory,
        split=clips.train,
        mixture="",
        eval="",
        seed=seed,
        **unless("data.features", features=""),  # targets that were cached for other clips
        **(unless("data.global_batch", global_batch=0) if small else {}),
    )
    optim = dataclasses.replace(
        optim,
        **unless("optim.lr", lr=optim.lr * rate),
        **unless("optim.min_lr", min_lr=optim.min_lr * rate),
        **unless("optim.warmup_lr", warmup_lr=optim.warmup_lr * rate),
        **unless("optim.warmup_epochs", warmup_epochs=0.0),
        **unless("optim.warmup_steps", warmup_steps=min(max(round(WARMUP * steps), 1), steps - 1)),
    )
    log = dataclasses.replace(config.log, report=False, every=max(1, min(50, steps // 20)))
    every = min(config.checkpoint.every, max(steps // 10, 10))
    return dataclasses.replace(
        config,
        data=data,
        optim=optim,
        log=dataclasses.replace(config.log, report=False) if "log.every" in given else log,
        checkpoint=dataclasses.replace(
            config.checkpoint, **unless("checkpoint.every", every=every)
        ),
        evals={},  # the probes look at the weights afterwards
        seed=seed,
        steps=steps,
        epochs=0.0,
        init_from=weights,
        init_whole=(),
        head_rows="",
    )
