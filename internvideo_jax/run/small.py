"""Batch, warm-up and length for a set that is too small for its recipe.

Recipes are for hundreds of thousands of videos: one batch of theirs may be more than there is.
Where a recipe cannot run on a set, or its option `small` asks for it, these three are made from the
number of records. Fields of the command line stay as they are given, and everything else is the
recipe's. A recipe that can run is never changed without being asked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

from internvideo_jax.config import TrainConfig, total_steps, warmup_steps

MOST = 64  # videos per step
PASSES, STEPS = 20, 200  # a run has the longer of the two, if the recipe's is not shorter
WARMUP = 0.1  # of the steps, at most


def fit(
    config: TrainConfig, records: Mapping[str, int], unit: int, given: Collection[str] = ()
) -> tuple[TrainConfig, str]:
    """The config with a batch, a length and a warm-up that suit the data, and a line about them.

    Args:
      records: of each media type.
      unit: examples of which a batch must be a multiple: devices x microbatches.
      given: fields that the command line sets, such as `optim.warmup_steps`.

    Returns:
      `config` itself and an empty line where it can run and nothing is asked for.
    """
    recipe, why, changed = config, "", {}
    if config.data.global_batch == 0:
        why = f"{_count(records)} records"
    elif short := _too_few(config, records, given):
        why = f"{short} records are fewer than one batch of the recipe ({config.data.global_batch})"
    if why:
        batch = _batch(config, min(records.values()), unit)
        changed["data.global_batch"] = batch
        image = dataclasses.replace(config.data.image, global_batch=0)
        data = dataclasses.replace(config.data, global_batch=batch, image=image)
        config = dataclasses.replace(config, data=data)
        if config.epochs > 0 and not {"steps", "epochs"} & set(given):
            changed["steps"] = steps = _length(config, _count(records))
            config = dataclasses.replace(config, steps=steps, epochs=0.0)
    if not {"optim.warmup_steps", "optim.warmup_epochs"} & set(given):
        config, warmup = _shorter_warmup(recipe, config, records, bool(why))
        if warmup is not None:
            changed["optim.warmup_steps"] = warmup
            why = why or f"the recipe's warm-up is longer than config.steps = {config.steps}"
    if not changed:
        return config, ""
    fields = ", ".join(f"config.{name} = {value}" for name, value in changed.items())
    return config, f"{why}: this run has {fields}; set these fields to choose others"


def _count(records: Mapping[str, int]) -> int:
    return sum(records.values())


def _too_few(config: TrainConfig, records: Mapping[str, int], given: Collection[str]) -> int:
    """Records of a media type that do not fill one batch of an epoch; 0: the recipe can run."""
    if "data.global_batch" in given or config.epochs <= 0:
        return 0
    data = config.data
    short = [n for media, n in records.items() if n * data.repeats < data.batch_of(media)]
    return min(short, default=0)


def _batch(config: TrainConfig, records: int, unit: int) -> int:
    """A power of two of videos, two steps a pass at least, as far as the devices allow."""
    step = math.lcm(config.data.repeats, unit)
    videos = 2 ** int(math.log2(max(min(MOST, records // 2), 1)))
    return max(videos * config.data.repeats // step, 1) * step


def _length(config: TrainConfig, records: int) -> int:
    each = max(records * config.data.repeats // config.data.global_batch, 1)
    return min(round(config.epochs * each), max(PASSES * each, STEPS))


def _shorter_warmup(
    recipe: TrainConfig, config: TrainConfig, records: Mapping[str, int], fitted: bool
) -> tuple[TrainConfig, int | None]:
    """The share of the run that the recipe has, a tenth at most; None where it can stay."""
    optim = config.optim
    if not (optim.warmup_steps or optim.warmup_epochs):
        return config, None
    if config.steps <= 0 and config.epochs <= 0:
        return config, None  # an error of its own
    steps = total_steps(config, records)
    if not fitted and warmup_steps(config, records) < steps:
        return config, None
    length, warm = (
        (recipe.steps, optim.warmup_steps)
        if optim.warmup_steps
        else (recipe.epochs, optim.warmup_epochs)
    )
    share = min(warm / length if length else WARMUP, WARMUP)
    warmup = min(max(round(share * steps), 1), steps - 1)
    optim = dataclasses.replace(optim, warmup_steps=warmup, warmup_epochs=0.0)
    return dataclasses.replace(config, optim=optim), warmup
