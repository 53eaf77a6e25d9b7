"""The config behind a command line: a recipe, or what a run has written down about itself.

`cli` hands the flag library this file as the recipe, so that overrides work on all of them alike.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from data_pipelines import recipe_files
from internvideo_jax.config import FORMER, TrainConfig, as_plain, current, to_typed, unknown
from internvideo_jax.evaluators.collapse import Collapse
from internvideo_jax.evaluators.features import FeatureTask
from internvideo_jax.protocols import clip_of
from internvideo_jax.registry import EVALUATORS, resolve

if TYPE_CHECKING:  # weight tools are imported when a file is read
    from internvideo_jax.weights.files import Weights

PRECISION = ("dtype", "attention", "remat", "scan")  # how a model computes, not what


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


def stored_config(checkpoint: str) -> dict[str, Any]:
    """The values of the run that a checkpoint belongs to.

    Raises:
      ValueError: there is no checkpoint, or it does not say its config: a weight file; a run of
        another version of the schema.
    """
    from internvideo_jax.weights.folders import is_weights  # late, as below
    from internvideo_jax.weights.named import resolve as place_of

    place = place_of(checkpoint)
    if is_weights(place):
        if found := _said_config(place):
            return found
        raise ValueError(
            f"{checkpoint} is a weight file, which does not say what model it is for; give the "
            f"--config it was trained with{_recipes_for(place)}"
        )
    # Late: what a recipe on the command line needs is no checkpoint library.
    from internvideo_jax.checkpoint.reading import META, step_of

    step = step_of(place)
    try:
        plain = current(TrainConfig, step.meta["config"])
        # The mesh was that of another machine, perhaps; what is computed does not depend on it.
        return as_plain(to_typed(TrainConfig, {**plain, "mesh": {}}))
    except (KeyError, TypeError, ValueError) as error:
        found = str(error) if isinstance(error, ValueError) else "it is not in there"
        raise ValueError(
            f"the config that {step.path / META} has from the run cannot be used: {found}; give "
            "the recipe as --config, with the options that the run had"
        ) from error


def _said_config(place: Path) -> dict[str, Any]:
    """As `folder_config`, of a file or folder; {} where it holds no weights that can be read."""
    from internvideo_jax.weights import files, folders, hub_config

    try:
        file = folders.weight_file(place)
        return folder_config(files.load(file))
    except (ValueError, OSError, ImportError):
        if (place / hub_config.CONFIG).is_file() and any(
            (place / name).is_file() for name in folders.NAMES
        ):
            raise  # what a folder of Hugging Face asks for and is not here
        return {}


def folder_config(weights: Weights) -> dict[str, Any]:
    """The values of a config for weights whose `config.json` says their model; {} for others.

    Test and evaluators are those of the family's recipe, on clips as the model takes them.
    """
    from internvideo_jax.weights.family import family_of

    family, said = family_of(weights.kind), weights.stated
    layout = family.huggingface if family is not None else None
    recipe = layout.recipes.get(weights.kind, "") if layout is not None else ""
    if not said.settings or layout is None or not recipe:
        return {}
    plain = recipe_files.load(recipe)
    made = as_plain(layout.made(weights.kind, said.settings, dict(weights.params)))
    kept = {name: plain["model"][name] for name in PRECISION if name in plain["model"]}
    clip = {"frames": made["frames"], "resolution": made["resolution"]}
    if said.stride:
        clip["stride"] = said.stride
    tests = {
        label: {**each, "views": {**each["views"], "clip": {**each["views"]["clip"], **clip}}}
        for label, each in plain["evals"].items()
    }
    data = {**plain["data"], "clip": {**plain["data"]["clip"], **clip}}
    return {**plain, "model": {**made, **kept}, "data": data, "evals": tests}


def _recipes_for(file: Path) -> str:
    """`, such as ...`: the recipes that fit a weight file, as far as it tells."""
    from internvideo_jax.weights import files
    from internvideo_jax.weights.identify import identify

    try:
        weights = files.load(file)
        known = identify(weights.kind, weights.params, weights.geometry, str(file))
    except (ValueError, OSError, ImportError):
        return ""
    configs = [entry.config for entry in (*known.named, *known.alike) if entry.config]
    for command in known.commands:
        configs += [
            word.removeprefix("--config=") for word in command.split() if "--config=" in word
        ]
    first = list(dict.fromkeys(configs))[:3]
    return f", such as {' or '.join(f'--config={each}' for each in first)}" if first else ""


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
