"""A run that goes on with other settings: which, and which of them it may not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from internvideo_jax.checkpoint.steps import shown
from internvideo_jax.config import TrainConfig, as_plain, current
from internvideo_jax.types import Plain

Changes = dict[str, tuple[Any, Any]]  # field -> (value of the checkpoint, value now)

# What the state is: the draws behind it, what its parameters compute, and what they were taught.
FIXED = {
    "seed": "masks, drop path and all other draws of the run come from it",
    "model": "the parameters and moments were made by that model, in its precision",
    "objective": "the parameters were taught by that objective",
    "lora": "the adapters were made for that rank, and act by that factor",
}
# Fields of models and objectives that only say how it is computed or goes on. The weights of a
# teacher have a digest of their own, wherever they lie.
FREE = (
    "attention",
    "remat",
    "scan",
    "form",
    "init_from",
    "drop_path",
    "global_drop_path",
    "mlp_dropout",
    "head_dropout",
    "learning_rates",
    "weight_decays",
)
# Of no effect on a run that has begun.
START = ("init_from", "init_whole", "head_rows")
ABSENT = "absent"


def changes(stored: Mapping[str, Any], config: TrainConfig) -> Changes:
    """Fields of the config that are not those of the checkpoint.

    A component that only one side has, or of another name, counts as one field.

    Args:
      stored: the plain config of the checkpoint; fields that it lacks count as their defaults.
      config: the typed config.
    """
    stored = current(type(config), stored)
    there, here = (
        json.loads(json.dumps(side)) for side in (_filled(stored, config), as_plain(config))
    )
    return dict(_differing("", there, here))


def _filled(stored: Plain, config: Plain) -> Any:
    """The stored config with the defaults of the fields that it lacks."""
    if not isinstance(stored, Mapping):
        return stored
    if isinstance(config, Mapping):
        return {key: _filled(value, config.get(key)) for key, value in stored.items()}
    if not dataclasses.is_dataclass(config):
        return stored
    filled = {key: _filled(value, vars(config).get(key)) for key, value in stored.items()}
    for field in dataclasses.fields(config):
        if field.name not in filled and field.default is not dataclasses.MISSING:
            filled[field.name] = as_plain(field.default)
        elif field.name not in filled and field.default_factory is not dataclasses.MISSING:
            filled[field.name] = as_plain(field.default_factory())
    return filled


def _differing(path: str, there: Plain, here: Plain) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if there == here:
        return
    sides = there, here
    if all(isinstance(side, dict) for side in sides) and there.get("name") == here.get("name"):
        for key in sorted({*there, *here}):
            values = (side.get(key, ABSENT) for side in sides)
            yield from _differing(f"{path}.{key}" if path else key, *values)
    else:
        one, other = (
            side.get("name", "given") if isinstance(side, dict) else side for side in sides
        )
        yield path, (one, other)


def check(found: Changes, step: Path | str) -> None:
    """ValueError where a change is none of how the run goes on, but of what it is.

    Args:
      step: that the run goes on from; its URL where it is on an object store.
    """
    refused = {
        key: FIXED[key.split(".")[0]]
        for key, (old, new) in found.items()
        if key.split(".")[0] in FIXED and not _may_change(key, old, new)
    }
    if not refused:
        return
    where = step if isinstance(step, str) else shown(step)
    lines = [f"  {text({key: found[key]})}: {why}" for key, why in refused.items()]
    raise ValueError(
        f"{where} was made with other settings:\n"
        + "\n".join(lines)
        + "\nGive the values of the checkpoint, or start another run from its parameters: another "
        f"--workdir and --config.init_from={where}"
    )


def _may_change(key: str, old: Plain, new: Plain) -> bool:
    moved = key.endswith("_teacher") and None in (old, new)  # to cached features, or from them
    return moved or key.split(".")[-1] in FREE


def text(found: Changes) -> str:
    """`optim.lr 0.001 -> 0.05, steps 6 -> 8`."""
    return ", ".join(
        f"{key} {_shown(old)} -> {_shown(new)}" + (" (of no effect now)" if key in START else "")
        for key, (old, new) in found.items()
    )


def _shown(value: Plain) -> str:
    return repr(value) if value == "" else str(value)


def history(stored: Mapping[str, Any], step: int, found: Changes) -> list[dict[str, Any]]:
    """Earlier settings of a run, oldest first: {"until": STEP, "settings": {field: value}}.

    Each entry holds the values, up to that step, of the fields that were changed there.

    Args:
      stored: provenance of the checkpoint that the run goes on from.
    """
    earlier = list(stored.get("history", ()))
    if found:
        earlier.append({"until": step, "settings": {key: old for key, (old, _) in found.items()}})
    return earlier
