"""From the name of a model, or the place of its weights, to a model that can be asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data_pipelines import recipe_files
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.protocols import Device
from internvideo_jax.recipes.loading import check_fields
from internvideo_jax.recipes.published import changed, config_of, weights_of

if TYPE_CHECKING:  # jax is imported when a model is made
    from internvideo_jax.api.model import VideoModel


def load(
    source: str | os.PathLike[str],
    *,
    recipe: str = "",
    settings: Mapping[str, object] | None = None,
    quantization: str = "",
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
      quantization: products with kernels of 8 bits: int8w (kernels rounded), int8 (activations
        too), fp8w, fp8, or none; empty: as the config has it (docs/quantization.md).
      labels: names of the classes of its head, where the file has none.
      devices: they share every batch; default: the first one.
      threads: videos decoded at a time.
      progress: a bar, on a terminal.

    Raises:
      ValueError: nothing there; a file that does not say which recipe it needs; weights that do not
        fit the recipe.
    """
    from internvideo_jax.api.model import VideoModel  # late: with jax and all libraries
    from internvideo_jax.checkpoint.initial import of_file

    place = os.fspath(source)
    plain = recipe_files.load(recipe) if recipe else None
    weights = weights_of(place)  # read once: a file may hold gigabytes
    plain = config_of(place, weights) if plain is None else plain
    settings = dict(settings or {})
    if quantization:
        settings["quantization.mode"] = quantization
    check_fields(plain, list(settings))
    for name, value in settings.items():
        plain = changed(plain, name.split("."), value)
    config: TrainConfig = to_typed(TrainConfig, plain)
    return VideoModel(
        config,
        place,
        labels=labels,
        devices=devices,
        threads=threads,
        progress=progress,
        source=None if weights is None else of_file(weights),
    )
