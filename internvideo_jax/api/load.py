"""From the name of a model, or the place of its weights, to a model that can be asked."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data_pipelines import recipe_files
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.protocols import Device
from internvideo_jax.recipes.loading import check_fields, folder_config, stored_config
from internvideo_jax.weights import files
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.folders import is_weights
from internvideo_jax.weights.identify import Identity, identify
from internvideo_jax.weights.named import resolve

if TYPE_CHECKING:  # jax is imported when a model is made
    from internvideo_jax.api.model import VideoModel


def load(
    source: str | os.PathLike[str],
    *,
    recipe: str = "",
    settings: Mapping[str, object] | None = None,
    labels: Sequence[str] = (),
    devices: Sequence[Device] = (),
    threads: int = 2,
    progress: bool = True,
) -> VideoModel:
    """A model with its weights.

    Args:
      source: a run or one of its checkpoints; a weight file; a folder of Hugging Face, whose
        config.json says which model it is; the name of a published checkpoint,
        hf://OWNER/REPOSITORY/FILE or https://... (docs/weights.md).
      recipe: as --config takes it, such as "videomae/finetune:size=base"; empty: what a run says
        of itself, or the recipe of the published checkpoint that a file is.
      settings: fields of the config to change, such as {"model.frames": 8}.
      labels: names of the classes of its head, where the file has none.
      devices: they share every batch; default: the first one.
      threads: videos decoded at a time.
      progress: a bar, on a terminal.

    Raises:
      ValueError: nothing there; a file that does not say which recipe it needs; weights that do not
        fit the recipe.
    """
    from internvideo_jax.api.model import VideoModel  # late: with jax and all libraries

    place = os.fspath(source)
    plain, more = _config(place, recipe)
    changes = {**more, **(settings or {})}
    check_fields(plain, list(changes))
    for name, value in changes.items():
        plain = _with(plain, name.split("."), value)
    config: TrainConfig = to_typed(TrainConfig, plain)
    return VideoModel(
        config, place, labels=labels, devices=devices, threads=threads, progress=progress
    )


def _config(place: str, recipe: str) -> tuple[dict[str, object], dict[str, object]]:
    """The config of a place, and what to change in it."""
    if recipe:
        return recipe_files.load(recipe), {}
    path = resolve(place)
    if not is_weights(path):
        return stored_config(place), {}
    weights = files.load(path)
    if found := folder_config(weights):
        return found, {}
    known = identify(weights.kind, weights.params, weights.geometry, str(path))
    entry = _one(place, known)
    chosen = entry.config or entry.finetune
    plain = recipe_files.load(chosen)
    model = plain["model"]["name"]
    if model != weights.kind:
        raise ValueError(
            f"{place} holds {weights.kind}, which {chosen} only starts from; give recipe=..., of a "
            "model that holds it"
        )
    return plain, _settings(entry)


def _one(place: str, known: Identity) -> Entry:
    """The published checkpoint that a file is, or one whose recipe is the same."""
    found = known.named or known.alike
    ways = {(each.config, each.settings, each.frames, each.pixels) for each in found}
    if len(ways) == 1:
        return found[0]
    say = "it is none of the published checkpoints"
    if found:
        say = f"it may be {found[0].name} or {found[1].name}, which are used differently"
    raise ValueError(
        f"{place} does not say which recipe it needs: {say}; give recipe=..., such as "
        f'"{(found[0].config if found else "") or "videomae/finetune:size=base"}"'
    )


def _settings(entry: Entry) -> dict[str, object]:
    """What an entry adds to its recipe, as values by field."""
    found: dict[str, object] = {}
    for setting in entry.settings:
        name, _, text = setting.removeprefix("--config.").partition("=")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def _with(plain: Mapping[str, object], path: Sequence[str], value: object) -> dict[str, object]:
    """The same with one field changed."""
    first, *rest = path
    inner = plain[first]
    if rest and isinstance(inner, Mapping):
        value = _with(inner, rest, value)
    return {**plain, first: value}
