"""From `--config=recipe.py:options` and `--config.data.x=y` to the settings of a stream.

A recipe is a Python file with a function `get_config(options)` whose result has a `data`
section. It is loaded by path when asked for, and brings its own imports: this package knows
nothing of the training system.
"""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines import recipe_files
from data_pipelines.config import DataConfig, SetConfig
from data_pipelines.limits import check_value, limits_of, suggest
from data_pipelines.records import manifest
from data_pipelines.records.media import MEDIA
from data_pipelines.stream.parts.table import made_of

_PREFIX = "--config.data."


def data_config(
    directory: str | None, split: str | None, recipe: str | None, overrides: Sequence[str]
) -> DataConfig:
    """The settings of the training stream that a command line asks for.

    Args:
      directory: of the shards; None takes what recipe and overrides name.
      split: wins over the recipe's; None leaves it.
      recipe: `FILE` or `FILE:OPTIONS`; None starts from the defaults.
      overrides: `--config.data.FIELD=VALUE` each.

    Raises:
      ValueError: no such recipe, or an unknown field or a value of the wrong
        type, with the nearest name.
    """
    config = DataConfig() if recipe is None else _of_recipe(recipe)
    for item in overrides:
        name, equals, text = item.partition("=")
        if not name.startswith(_PREFIX) or not equals:
            raise ValueError(f"{item}: expected {_PREFIX}FIELD=VALUE; only the data are used here")
        nested: Any = text
        for part in reversed(name.removeprefix(_PREFIX).split(".")):
            nested = {part: nested}
        config = overlay(config, nested, "config.data")
    if not config.global_batch:  # left to the run; what is shown does not depend on it
        config = dataclasses.replace(config, global_batch=DataConfig.global_batch)
    if directory is not None:
        config = dataclasses.replace(config, train=directory)
    return config if split is None else dataclasses.replace(config, split=split)


def as_declared(config: DataConfig) -> DataConfig:
    """The settings for a set that declares to have no pixels: a mixture of it alone."""
    if not config.train or config.mixture:
        return config
    media = manifest.load(config.train).media
    if MEDIA[media].pixels:
        return config
    sets = {"set": SetConfig(config.train, media=media)}
    return dataclasses.replace(config, train="", mixture=sets)


def _of_recipe(recipe: str) -> DataConfig:
    plain = recipe_files.load(recipe)
    if not isinstance(plain.get("data"), Mapping):
        raise ValueError(f"--config: {recipe}: its get_config() gives no section `data`")
    config = overlay(DataConfig(), plain["data"], "config.data")
    parts = {
        key: made_of(values, f"config.data.parts.{key}") if isinstance(values, Mapping) else values
        for key, values in config.parts.items()
    }
    return dataclasses.replace(config, parts=parts)


def overlay(settings: Any, changes: Mapping[str, Any], path: str) -> Any:
    """A dataclass with some fields replaced, at any depth; text becomes what a field holds.

    Raises:
      ValueError: an unknown field or a value of the wrong type; names the path, what was found
        and what was expected.
    """
    hints, limits = typing.get_type_hints(type(settings)), limits_of(type(settings))
    values = {}
    for name, value in changes.items():
        if name not in hints:
            raise ValueError(f"unknown field {path}.{name}: {suggest(name, hints)}")
        where, old = f"{path}.{name}", getattr(settings, name)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            values[name] = overlay(old, value, where)
        else:
            values[name] = _convert(hints[name], value, where)
            check_value(values[name], limits.get(name), where)
    return dataclasses.replace(settings, **values)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if kind is Any or kind is str:
        return value
    if isinstance(value, str):
        value = _read(kind, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return overlay(kind(), value, where)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is not None and issubclass(origin, Sequence) and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if (
        not isinstance(kind, type)
        or not isinstance(value, kind)
        or (kind is int and isinstance(value, bool))
    ):
        name = getattr(kind, "__name__", kind)
        raise ValueError(f"{where}: found {value!r}, expected {name}")
    return value


def _read(kind: Any, text: str) -> Any:
    """A value typed on the command line; text that is no literal stays text."""
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
