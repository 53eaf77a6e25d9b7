"""Whether a command will be able to write its results, found before the work and not after it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path


def check_file(flag: str, path: str | Path, suffixes: Sequence[str] = ()) -> None:
    """ValueError that names `flag` where a file cannot be written.

    Args:
      suffixes: one of which the name must have; empty: any name.
    """
    place = Path(path)
    if suffixes and place.suffix.lower() not in suffixes:
        known = " or ".join(suffixes)
        raise ValueError(f"{flag}={path}: expected the name of a file that ends in {known}")
    _check(flag, place, "file")


def check_folder(flag: str, path: str | Path) -> None:
    """ValueError that names `flag` where a folder cannot be made or written to."""
    _check(flag, Path(path), "folder")


def _check(flag: str, place: Path, kind: str) -> None:
    try:
        if kind == "file" and place.is_dir():
            raise ValueError(f"{flag}={place}: is a folder, expected the name of a file")
        if kind == "file" and place.exists() and not place.is_file():
            raise ValueError(f"{flag}={place}: is no regular file, which results would replace")
        if kind == "folder" and place.exists() and not place.is_dir():
            raise ValueError(f"{flag}={place}: is a file, expected a folder")
        above = place.absolute() if kind == "folder" else place.absolute().parent
        while not above.exists():
            above = above.parent
        if not above.is_dir():
            raise ValueError(f"{flag}={place}: {above} is a file, nothing can be written below it")
        # Asking for the right is not enough: read-only file systems, folders of the system.
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{flag}={place}: cannot be written ({reason})") from error
