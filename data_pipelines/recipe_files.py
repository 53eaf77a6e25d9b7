"""Recipes: found by their path or the name of one that comes with the training package; loaded."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.limits import suggest

FOLDER = "configs"  # in a checkout, and in the installed package


def shipped() -> Path:
    """The folder of the recipes that come with the package.

    Raises:
      ValueError: the package is not there, or without its recipes.
    """
    # Only looked for, not imported: this package knows nothing of the training system.
    package = importlib.util.find_spec("internvideo_jax")
    if package is None or not package.submodule_search_locations:
        raise ValueError("the package internvideo_jax, which has the recipes, is not installed")
    folder = Path(next(iter(package.submodule_search_locations))) / FOLDER
    if not folder.is_dir():
        raise ValueError(f"{folder}: the recipes are missing from the installation; install anew")
    return folder


def find(name: str) -> Path:
    """The file of a recipe: that path, else `configs/x/y.py`, `x/y.py` or `x/y` of the package.

    Raises:
      ValueError: there is none; names the nearest and the folder where they are.
    """
    given = Path(name)
    if given.is_file():
        return given.absolute()
    folder = shipped()
    recipes = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.py"))
    }
    short = name.removeprefix(f"{FOLDER}/").removesuffix(".py")
    if not given.is_absolute() and short in recipes:
        return recipes[short].absolute()
    known = [f"{FOLDER}/{each}.py" for each in recipes]
    raise ValueError(
        f"--config: {name}: no such file or recipe; {suggest(name, known)} (in {folder})"
    )


def load(recipe: str) -> dict[str, Any]:
    """The values of a recipe, `FILE` or `FILE:OPTIONS`, as plain mappings.

    Raises:
      ValueError: no such recipe or option, or a file that is no recipe.
    """
    name, _, options = recipe.partition(":")
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.parent.stem}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config: {name}: is not a Python file; expected FILE.py[:OPTIONS]")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    try:
        spec.loader.exec_module(module)
        get = vars(module).get("get_config")
        if get is None:
            raise ValueError(f"--config: {name}: has no function get_config, so it is no recipe")
        found = get(options)
    except ValueError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(f"--config: {name}: is broken: {kind}: {error}") from error
    # A ConfigDict, whose library this package does without, or a mapping.
    plain = found.to_dict() if hasattr(found, "to_dict") else found
    if not isinstance(plain, Mapping):
        kind = type(plain).__name__
        raise ValueError(f"--config: {name}: its get_config() gives {kind}, expected a mapping")
    return dict(plain)
