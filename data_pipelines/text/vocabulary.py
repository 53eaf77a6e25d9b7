"""Vocabulary files: none is part of this package, all are read from where the user has them."""

from __future__ import annotations

import gzip
import http.client
import io
import urllib.request
import zlib
from pathlib import Path
from typing import Any

# Bytes, unpacked: more than ten times the largest vocabulary of a published video model.
LARGEST = 64 * 2**20

MISSING = "pip install 'internvideo-jax[text]'"


def read(path: str, origin: str) -> bytes:
    """Content of a local file or of an http(s) address, unpacked when it is gzip.

    Args:
      path: what the config names.
      origin: for the message, where such a file comes from.

    Raises:
      FileNotFoundError: it cannot be read.
      ValueError: a damaged gzip file, or more than LARGEST bytes.
    """
    if not path:
        raise ValueError(f"a path to the vocabulary is needed; {origin}")
    try:
        if path.startswith(("http://", "https://")):
            with urllib.request.urlopen(path, timeout=60) as answer:
                data = _bounded(answer, path, origin)
        else:
            with Path(path).expanduser().open("rb") as file:
                data = _bounded(file, path, origin)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"cannot read the vocabulary {path!r}: {error}; {origin}"
        ) from error
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = _bounded(file, path, origin)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); {origin}") from error
    return data


def _bounded(file: Any, path: str, origin: str) -> bytes:
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(
            f"{path}: more than {LARGEST >> 20} MiB of text, which no vocabulary has; {origin}"
        )
    return data


def text(data: bytes, path: str, origin: str) -> str:
    """Bytes of a vocabulary as text; ValueError when they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); {origin}") from error
