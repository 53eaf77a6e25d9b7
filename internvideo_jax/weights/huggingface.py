"""The layout of Hugging Face transformers: weights, `config.json` and processors in a folder.

What the files hold is the family's (`Family.huggingface`); here they are written. Reading is that
of all weights (`files.load`), and of what lies beside them (`hub_config`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.weights import safetensors_files
from internvideo_jax.weights.family import HuggingFace, Names, families, kinds
from internvideo_jax.weights.files import Weights
from internvideo_jax.weights.formats import TORCH_SUFFIXES
from internvideo_jax.weights.hub_config import CONFIG, PROCESSORS, SAMPLING_RATE
from internvideo_jax.weights.rules import check_complete, to_torch

CARD = "README.md"


def layout_of(kind: str) -> HuggingFace:
    """The layout for a kind of model; ValueError where transformers has none for it."""
    known = {family.title: family.huggingface for family in families() if family.huggingface}
    found = next((layout for layout in known.values() if kind in layout.names), None)
    if found is None:
        kinds = sorted({name for layout in known.values() for name in layout.names})
        raise ValueError(
            f"only {', '.join(known)} have a Hugging Face layout ({', '.join(kinds)}), this is "
            f"{kind}: transformers has no such model. Export with the original torch names instead "
            "(without --layout)"
        )
    return found


def check_out(folder: str | Path) -> None:
    """ValueError, before any work, for a path that is no folder or is named like a file."""
    folder = Path(folder)
    if folder.is_file() or folder.suffix in (".safetensors", ".json", *TORCH_SUFFIXES):
        raise ValueError(
            f"--out {folder}: named like a file; --layout=huggingface writes a folder with "
            "model.safetensors and config.json"
        )


def save(
    folder: str | Path,
    params: Mapping[str, np.ndarray],
    config: Any,
    classes: Sequence[str] = (),
    *,
    stride: int = 0,
    card: str = "",
) -> int:
    """Writes weights, `config.json` and processors; returns the number of tensors.

    Args:
      params: flat parameters by our paths.
      config: the model's config.
      classes: names of the classes; by default `LABEL_0`, `LABEL_1` ..., as transformers does.
      stride: stored frames between two frames of a clip; 0: not known.
      card: text of the model card; empty: none is written.

    Raises:
      ValueError: the layout cannot express this model.
    """
    layout = layout_of(config.name)
    written = {CONFIG: layout.config_json(config, classes), **layout.processors(config)}
    if stride and (video := written.get(PROCESSORS[0])) is not None:
        video[SAMPLING_RATE] = stride
    shape = {name: getattr(config, name, 1) for name in ("tubelet", "patch")}
    names = layout.names[config.name]
    known = {rule.path for rule in names.rules}
    if lost := [path for path in params if path not in known]:
        raise ValueError(
            f"the Hugging Face layout of {config.name} has no place for {lost[0]} and "
            f"{len(lost) - 1} more parameters. Export with the original torch names instead "
            "(without --layout)"
        )
    _check_whole(config.name, params, names)
    tensors = to_torch(params, names.rules, shape)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors_files.write(folder / "model.safetensors", tensors, {"format": "pt"})
    for name, content in written.items():
        _write(folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if card:
        _write(folder / CARD, card)
    return len(tensors)


def config_json(config: Any, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The content of `config.json`; ValueError where the layout cannot express this model."""
    return layout_of(config.name).config_json(config, classes)


def config_of(weights: Weights, given: Mapping[str, int] | None = None) -> tuple[Any, bool]:
    """The config of the model that a file holds, and whether that is known and not guessed.

    Args:
      given: as `guess_config` has it; nothing may be given for a file that says it all.

    Raises:
      ValueError: transformers has no such model, or more has to be given.
    """
    settings = weights.stated.settings
    if not settings:
        return guess_config(weights.kind, weights.params, weights.geometry, given), False
    asked = [name for name, value in (given or {}).items() if value]
    if asked:
        raise ValueError(f"--{asked[0]} is for files that do not tell it; this one does")
    layout = layout_of(weights.kind)
    return layout.made(weights.kind, settings, dict(weights.params)), True


def guess_config(
    kind: str,
    params: Mapping[str, Any],
    geometry: Mapping[str, int],
    given: Mapping[str, int] | None = None,
) -> Any:
    """The config of a model from its parameters, as far as they tell.

    Args:
      given: `frames`, `resolution`, `heads`, `decoder_heads`, `text_heads` where they are known;
        0 = not.

    Raises:
      ValueError: transformers has no such model, or more has to be given.
    """
    stated = {name: value for name, value in (given or {}).items() if value}
    layout = layout_of(kind)
    settings = layout.guess(kinds()[kind], dict(params), geometry, stated)
    return layout.made(kind, settings, dict(params))


def _check_whole(kind: str, params: Mapping[str, np.ndarray], names: Names) -> None:
    """ValueError where transformers would make up what these weights lack."""
    try:
        check_complete(params, names.rules, names.optional)
    except ValueError as error:
        raise ValueError(f"{kind} in the Hugging Face layout: {error}") from None


def _write(path: Path, text: str) -> None:
    with safetensors_files.replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
