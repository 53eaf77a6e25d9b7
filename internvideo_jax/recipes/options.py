"""What recipes begin and end with: the options after their colon, and the config for the flags.

Nothing here defines a flag, so that programs with flags of their own can load recipes.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from internvideo_jax.config import TrainConfig, as_plain, to_typed
from internvideo_jax.registry import suggest


def config_dict(config: TrainConfig) -> ConfigDict:
    """The recipe as a ConfigDict that holds every field, so that each can be overridden."""
    # Once through the schema turns ints in float fields into floats, whose overrides may be any.
    return ConfigDict(as_plain(to_typed(TrainConfig, as_plain(config))))


def parse_arg(arg: str | None, **defaults: bool | int | float | str) -> dict[str, Any]:
    """Options after the colon of `--config=file.py:size=base,smoke`.

    Args:
      defaults: name -> default value, whose type decides how the text is read; a bare name of a
        bool means True.

    Raises:
      ValueError: an unknown name or a value of the wrong type.
    """
    options: dict[str, Any] = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ValueError(f"unknown config option {name!r}: {suggest(name, defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise ValueError(f"config option {name}: expected true or false, found {text!r}")
            options[name] = not equals or text.lower() in ("true", "1")
            continue
        try:
            options[name] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config option {name}: expected {kind.__name__}, found {text!r}"
            ) from error
    return options


def assigned(words: Iterable[str], flag: str) -> dict[str, Any]:
    """`optim.lr=1e-3` -> {"optim.lr": 0.001}; a text that is no literal stays text.

    Raises:
      ValueError: a word without =; it names `flag`, which they were given by.
    """
    found = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{flag}{word}: expected FIELD=VALUE, such as optim.lr=1e-3")
        found[path] = text
        with contextlib.suppress(ValueError, SyntaxError):
            found[path] = ast.literal_eval(text)
    return found


def check_known(options: Mapping[str, Any], **known: Iterable[str]) -> None:
    """ValueError with the near matches for the first option that is none of its known values."""
    for name, values in known.items():
        found = options[name]
        if found not in values:
            raise ValueError(f"unknown {name} {found!r}: {suggest(found, values)}")
