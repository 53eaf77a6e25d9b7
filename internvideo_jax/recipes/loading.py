"""The config behind a command line: a recipe, or what a run has written down about itself.

`cli` hands the flag library this file as the recipe, so that overrides work on all of them alike.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import recipe_files
from internvideo_jax.config import FORMER, TrainConfig, as_plain, to_typed, unknown
from internvideo_jax.evaluators.collapse import Collapse
from internvideo_jax.evaluators.features import FeatureTask
from internvideo_jax.protocols import clip_of
from internvideo_jax.recipes.stored import stored_config
from internvideo_jax.registry import EVALUATORS, resolve


def get_config(request: str) -> ConfigDict:
    """The config that `cli` asks for, in JSON: that of `recipe`, else of `weights` (a run or a
    published file), else of the run `checkpoint`; with the evaluators `evals`, for overrides of
    `fields`."""
    asked = json.loads(request)
    if asked["recipe"]:
        plain = recipe_files.load(asked["recipe"])
    else:
        try:
            if asked.get("weights"):
                from internvideo_jax.recipes.published import config_of  # late: it reads weights

                plain = config_of(asked["weights"])
            else:
                plain = stored_config(asked["checkpoint"])
        except ValueError as error:
            raise OSError(str(error)) from error  # the library waits until the config is read
    if more := added(plain, asked["evals"]):
        plain = {**plain, "evals": {**plain["evals"], **more}}
    check_fields(plain, asked["fields"])
    return ConfigDict(plain)


def added(plain: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Evaluators that are asked for by their names and that the config lacks, on its model's clips.

    How frames are chosen is the evaluator's own rule where it compares with texts, else that of the
    evaluators that the config has.
    """
    wanted = [name for name in labels if name in EVALUATORS and name not in plain.get("evals", ())]
    if not wanted:
        return {}
    config = to_typed(TrainConfig, plain)
    others = [each.views for each in config.evals.values()]
    found = {}
    for name in wanted:
        evaluator = resolve("evaluator", name)()
        views = evaluator.views
        if others and not evaluator.compares_texts:
            views = others[0]
        if isinstance(evaluator, FeatureTask | Collapse):  # their number of views is their own
            own = evaluator.views
            views = dataclasses.replace(views, clips=own.clips, crops=own.crops)
        takes = clip_of(config.model)
        clip = dataclasses.replace(views.clip, frames=takes.frames, resolution=takes.resolution)
        batch = others[0].batch if others else views.batch
        views = dataclasses.replace(views, clip=clip, batch=batch)
        found[name] = as_plain(dataclasses.replace(evaluator, views=views))
    return found


def check_fields(plain: Mapping[str, Any], fields: Sequence[str]) -> None:
    """ValueError for the first path of an override that the config does not have."""
    for path in fields:
        here: object = plain
        parts = path.split(".")
        for depth, name in enumerate(parts):
            where = ".".join(["config", *parts[:depth]])
            if "[" in name:  # an entry of a sequence: the flag library's own syntax
                break
            if not isinstance(here, Mapping):
                shown = "None" if here is None else "a single value"
                raise ValueError(f"unknown field {where}.{name}: {where} is {shown}")
            if name not in here:
                raise ValueError(f"unknown field {where}.{name}: {_near(name, here, plain)}")
            here = here[name]


def leaves(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every field that holds a value."""
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _near(name: str, here: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    hint = unknown(name, here)
    elsewhere = [path for path, _ in leaves(plain) if path.rpartition(".")[2] == name]
    if elsewhere and FORMER.get(name) not in here:  # the very name counts more than a near one
        names = " or ".join(f"config.{path}" for path in elsewhere[:2])
        hint = f"did you mean {names}? {hint.rpartition('? ')[2]}"
    return hint
