"""Vocabulary files: none is part of this package, all are read from where the user has them."""

from __future__ import annotations

import gzip
import urllib.error
import urllib.request
from pathlib import Path

MISSING = "pip install 'internvideo-jax[text]'"


def read(path: str, origin: str) -> bytes:
    """Content of a local file or of an http(s) address, unpacked when it is gzip.

    Args:
      path: what the config names.
      origin: for the message, where such a file comes from.
    """
    if not path:
        raise ValueError(f"a path to the vocabulary is needed; {origin}")
    try:
        if path.startswith(("http://", "https://")):
            with urllib.request.urlopen(path, timeout=60) as answer:
                data = answer.read()
        else:
            data = Path(path).expanduser().read_bytes()
    except (OSError, urllib.error.URLError) as error:
        raise FileNotFoundError(
            f"cannot read the vocabulary {path!r}: {error}; {origin}"
        ) from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); {origin}") from error
    return data


def text(data: bytes, path: str, origin: str) -> str:
    """Bytes of a vocabulary as text; ValueError when they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); {origin}") from error
