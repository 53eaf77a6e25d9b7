"""The layout of Hugging Face transformers: `model.safetensors` and `config.json` in a folder.

What the files hold is the family's (`Family.huggingface`); here it is found, read and written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.weights import safetensors_files
from internvideo_jax.weights.family import HuggingFace, families, kinds
from internvideo_jax.weights.formats import TORCH_SUFFIXES
from internvideo_jax.weights.rules import to_torch


def layout_of(kind: str) -> HuggingFace:
    """The layout for a kind of model; ValueError where transformers has none for it."""
    known = {family.title: family.huggingface for family in families() if family.huggingface}
    found = next((layout for layout in known.values() if kind in layout.names), None)
    if found is None:
        raise ValueError(f"only {', '.join(known)} has a Hugging Face layout, this is {kind}")
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
) -> int:
    """Writes `model.safetensors` and `config.json`; returns the number of tensors.

    Args:
      params: flat parameters by our paths.
      config: the model's config.
      classes: names of the classes; by default `LABEL_0`, `LABEL_1` ..., as transformers does.

    Raises:
      ValueError: the layout cannot express this model.
    """
    content = config_json(config, classes)
    shape = {"tubelet": config.tubelet, "patch": config.patch}
    names = layout_of(config.name).names[config.name]
    tensors = to_torch(params, names.rules, shape)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors_files.write(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return len(tensors)


def config_json(config: Any, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The content of `config.json`; ValueError where the layout cannot express this model."""
    return layout_of(config.name).config_json(config, classes)


def guess_config(
    kind: str,
    params: Mapping[str, Any],
    geometry: Mapping[str, int],
    given: Mapping[str, int] | None = None,
) -> Any:
    """The config of a model from its parameters, as far as they tell.

    Args:
      given: `frames`, `resolution`, `heads`, `decoder_heads` where they are known; 0 = not.

    Raises:
      ValueError: transformers has no such model, or more has to be given.
    """
    stated = {name: value for name, value in (given or {}).items() if value}
    layout = layout_of(kind)
    return layout.guess_config(kinds()[kind], dict(params), geometry, stated)
