"""The config that a run, or a folder of weights, has written down about itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines import recipe_files
from internvideo_jax.config import TrainConfig, as_plain, current, to_typed

if TYPE_CHECKING:  # weight tools are imported when a file is read
    from internvideo_jax.weights.files import Weights

PRECISION = ("dtype", "attention", "remat", "scan")  # how a model computes, not what


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
