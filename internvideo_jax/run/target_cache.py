"""What cached targets of frozen teachers were made with, beside their companion.

`ivj teach` leaves it in `targets-SPLIT.json`; a run that reads the targets is
compared with it. Targets of other clips or another mask would train, and silently mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_pipelines.records import storage
from data_pipelines.records.dataset import Dataset
from data_pipelines.stream import mixture
from data_pipelines.stream.identity import differences
from data_pipelines.stream.mixture import Component
from data_pipelines.stream.parts.features import directory_of
from data_pipelines.stream.views import view_settings
from internvideo_jax.config import TrainConfig, current
from internvideo_jax.protocols import clip_of

NAME = "targets"  # of the companion, and of the file beside it


def file_name(split: str) -> str:
    """Of the provenance of a split's targets."""
    return f"{NAME}-{split}.json"


def target_settings(config: TrainConfig, component: Component, dataset: Dataset) -> dict[str, Any]:
    """What of a run decides the targets of a set beside teachers and records, as JSON values.

    The pixels of each view, the token grid, and the objective's `target_settings`.
    """
    clip = clip_of(config.model)
    return {
        "config.data": view_settings(config.data, component, dataset),
        "config.model": {"frames": clip.frames, "grid": list(clip.grid)},
        "config.objective": config.objective.target_settings(),
        "config.seed": config.seed,
    }


def check_targets(config: TrainConfig, opened: mixture.Opened = ()) -> list[str]:
    """Compares the cached targets of a run's sets with the run.

    Args:
      opened: the sets, where they are open already.

    Returns:
      A note for each set whose features do not say what they were made with.

    Raises:
      ValueError: targets of other settings; names every difference.
      FileNotFoundError: a set is not there.
    """
    if "features" not in config.objective.reads:
        return []
    notes = []
    for component, dataset in opened or mixture.open_components(config.data):
        directory = directory_of(component.features, dataset)
        place = storage.join(directory, file_name(dataset.split))
        try:
            stored = _current(json.loads(storage.read_text(place))["settings"])
        except FileNotFoundError:
            notes.append(
                f"config.data.features: {directory} has no {file_name(dataset.split)}, so nothing "
                "says which clips and masks its features belong to; they are taken as they are"
            )
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{place}: is not what teach writes ({error!r}); make the features again"
            ) from error
        lines = compare(target_settings(config, component, dataset), stored)
        if lines:
            raise ValueError(
                f"config.data.features: those in {directory} were made with other settings than "
                f"this run's, so they belong to other clips or tokens:\n  "
                + "\n  ".join(lines)
                + "\nTake the settings that they were made with, or make them again with `ivj "
                "teach` into another directory"
            )
    return notes


def _current(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of targets under the names that fields have now."""
    plain = {name.removeprefix("config."): value for name, value in stored.items()}
    return {f"config.{name}": value for name, value in current(TrainConfig, plain).items()}


def compare(found: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs."""
    return differences(found, stored, "the features have")
