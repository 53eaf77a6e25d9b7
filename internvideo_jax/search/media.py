"""Parts of a file over HTTP: the Range header, and which type a video file has."""

from __future__ import annotations

import re
from pathlib import Path

TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",  # browsers play H.264 in it, but not under its own name
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".ogv": "video/ogg",
    ".avi": "video/x-msvideo",
    ".gif": "image/gif",
}
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")


class Unsatisfiable(ValueError):
    """A range beyond the end of the file."""


def media_type(path: str) -> str:
    """The type that a browser plays a file as."""
    return TYPES.get(Path(path).suffix.lower(), "application/octet-stream")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, end) that a Range header asks for (RFC 9110, section 14).

    Several ranges, other units and what is no range at all give None: the whole file, as a server
    may do.

    Raises:
      Unsatisfiable: no byte of the file is asked for.
    """
    found = _RANGE.fullmatch((header or "").strip())
    # More digits than any file has bytes are nonsense, and slow to read as a number.
    if found is None or max(map(len, found.groups())) > 18:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        if not int(last) or not size:
            raise Unsatisfiable(header)
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable(header)
    return int(first), min(int(last) + 1, size) if last else size
