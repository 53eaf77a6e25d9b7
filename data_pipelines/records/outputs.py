"""Whether a command will be able to write its results, found before the work and not after it.

Every flag that names a place for results comes through here, so that a URL is written to where the
command can do that, and refused where it cannot; none is taken for the name of a folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.records import storage, trees


def check_file(
    flag: str, path: str | os.PathLike[str], suffixes: Sequence[str] = (), *, remote: bool = False
) -> None:
    """ValueError that names `flag` where a file cannot be written.

    Args:
      suffixes: one of which the name must have; empty: any name.
      remote: the command can write to object stores.
    """
    place = Path(path)
    if suffixes and place.suffix.lower() not in suffixes:
        known = " or ".join(suffixes)
        raise ValueError(f"{flag}={path}: expected the name of a file that ends in {known}")
    if not storage.is_remote(path):
        _check(flag, Path(storage.local(path)), "file")
    elif str(path).endswith("/"):
        raise ValueError(f"{flag}={path}: expected the name of a file")
    else:
        _check_remote(flag, str(path), str(path).rpartition("/")[0], remote)


def check_folder(flag: str, path: str | os.PathLike[str], *, remote: bool = False) -> None:
    """ValueError that names `flag` where a folder cannot be made or written to."""
    if storage.is_remote(path):
        _check_remote(flag, str(path), str(path), remote)
    else:
        _check(flag, Path(storage.local(path)), "folder")


def local_only(flag: str, path: str | os.PathLike[str]) -> Path:
    """The path of something that is read from this machine only; ValueError for a URL."""
    if storage.is_remote(path):
        raise ValueError(
            f"{flag}={path}: is not read from a URL; expected a local path (copy it here first)"
        )
    return Path(storage.local(path))


def local_argument(text: str) -> Path:
    """As the `type` of an option of argparse that names a local path."""
    if storage.is_remote(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL, which this option does not take; expected a local path"
        )
    return Path(storage.local(text))


def _check_remote(flag: str, path: str, folder: str, supported: bool) -> None:
    if not supported:
        raise ValueError(
            f"{flag}={path}: is not written to a URL; expected a local path (copy the result "
            "where it belongs afterwards)"
        )
    trees.require_writable(flag, folder)


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
