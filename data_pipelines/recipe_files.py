"""Where recipes lie: a path, or the name of one that comes with the training package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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
