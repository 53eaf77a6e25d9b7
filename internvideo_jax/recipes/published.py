"""The recipe of a weight file, which says nothing of itself: that of the published one it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines import recipe_files
from internvideo_jax.recipes.options import assigned
from internvideo_jax.recipes.stored import folder_config, stored_config
from internvideo_jax.weights import files
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.folders import is_weights
from internvideo_jax.weights.identify import Identity, identify
from internvideo_jax.weights.named import resolve


def weights_of(place: str) -> files.Weights | None:
    """The weights in a file or a folder of Hugging Face, or of a name or address; None of a run.

    Raises:
      ValueError: nothing there, or no weights of a known model.
    """
    path = resolve(place)
    return files.load(path) if is_weights(path) else None


def config_of(place: str, weights: files.Weights | None = None) -> dict[str, Any]:
    """The values of the config that weights are for.

    Args:
      place: a run or one of its checkpoints, or a folder of Hugging Face, which have them written
        down; a weight file, whose published recipe is taken; or the name or address of one.
      weights: `weights_of` it, where that was asked before.

    Raises:
      ValueError: nothing there, or a file that does not say which recipe it needs.
    """
    weights = weights or weights_of(place)
    if weights is None:
        return stored_config(place)
    if found := folder_config(weights):
        return found
    known = identify(weights.kind, weights.params, weights.geometry, str(resolve(place)))
    entry = _one(place, known)
    chosen = entry.config or entry.finetune
    plain: dict[str, Any] = recipe_files.load(chosen)
    model = plain["model"]
    name = model["name"] if isinstance(model, Mapping) else model
    if name != weights.kind:
        raise ValueError(
            f"{place} holds {weights.kind}, which {chosen} only starts from; give recipe=..., of a "
            "model that holds it"
        )
    for path_of, value in _settings(entry).items():
        plain = changed(plain, path_of.split("."), value)
    return plain


def changed(plain: Mapping[str, Any], path: Sequence[str], value: object) -> dict[str, Any]:
    """The same with one field changed."""
    first, *rest = path
    inner = plain[first]
    if rest and isinstance(inner, Mapping):
        value = changed(inner, rest, value)
    return {**plain, first: value}


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
    return assigned([each.removeprefix("--config.") for each in entry.settings], "--config.")
