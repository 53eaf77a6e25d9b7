"""Parts of a batch by name, beside those that config.data has settings of its own for.

One line adds one. The value is `module:attribute`, imported only when asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.limits import check_value, limits_of, suggest

PARTS = {
    "segments": "data_pipelines.stream.parts.segments:Segments",
    "boxes": "data_pipelines.stream.parts.boxes:Boxes",
    "sequences": "data_pipelines.stream.parts.sequences:Sequences",
    "turns": "data_pipelines.stream.parts.turns:Turns",
}


def made_of(values: Mapping[str, Any], where: str) -> Any:
    """The part of plain values, whose `name` says which; ValueError names what does not fit."""
    name = values.get("name")
    if name not in PARTS:
        raise ValueError(f"{where}: unknown part {name!r}: {suggest(str(name), PARTS)}")
    module, attribute = PARTS[name].split(":")
    kind = getattr(importlib.import_module(module), attribute)
    limits = limits_of(kind)
    for field, value in values.items():
        check_value(value, limits.get(field), f"{where}.{field}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
