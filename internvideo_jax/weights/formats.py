"""What kind of file it is, by its first bytes; and what it is where it is no weight file."""

from __future__ import annotations

import string
from pathlib import Path

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
# The largest header that the safetensors library reads.
HEADER_LIMIT = 100_000_000
TORCH_SUFFIXES = (".pth", ".pyth", ".pt", ".bin")

# First bytes -> what to say. Of each only its beginning is looked at.
OTHERS = {
    b"\x1f\x8b": "a gzip file; unpack it and give the weight file in it",
    b"BZh": "a bzip2 file; unpack it and give the weight file in it",
    b"\xfd7zXZ": "an xz file; unpack it and give the weight file in it",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it and give the weight file in it",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the weight file in it",
    b"Rar!": "a rar archive; unpack it and give the weight file in it",
    b"\x93NUMPY": "a numpy array, not the weights of a model",
    b"\x89HDF": "an HDF5 file, as Keras writes them; save the weights as safetensors",
    b"GGUF": "a GGUF file; take the safetensors or torch file of the model",
    b"%PDF": "a PDF document, not weights",
    b"\x89PNG": "a picture, not weights",
    b"\xff\xd8\xff": "a picture, not weights",
}
_TAR_AT, _TAR = 257, b"ustar"
_PRINTABLE = frozenset(string.printable.encode())


def check_format(path: Path) -> str:
    """`safetensors`, `torch` or `index`, by the first bytes where they tell, else by the ending.

    `index` is JSON, which names the files that hold the tensors (folders.py).

    Raises:
      ValueError: empty, or something else: a web page, the pointer that git-lfs leaves instead of
        a file, an archive that has to be unpacked.
    """
    with path.open("rb") as file:
        head = file.read(512)
    size, text = path.stat().st_size, head.lstrip().lower()
    kind = "safetensors" if path.suffix == ".safetensors" else "torch"
    if size == 0:
        raise ValueError(f"{path}: empty file, not a readable {kind} file; download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ValueError(
            f"{path}: a web page, not weights: {_line(head)!r}. The download led to a login, a "
            "quota or an error page; open the address in a browser"
        )
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: the pointer of a git-lfs file; run `git lfs pull` there")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_LIMIT:
        return "safetensors"
    if head.startswith(ZIP) or (head.startswith(PICKLE) and kind == "torch"):
        return "torch"
    for begin, what in OTHERS.items():
        if head.startswith(begin):
            raise ValueError(f"{path}: {what}")
    if head[_TAR_AT:].startswith(_TAR):
        raise ValueError(
            f"{path}: a tar archive; unpack it and give the weight file in it. Where torch itself "
            "wrote it (before 0.1.10), load it with torch and save its state dict"
        )
    if text.startswith(b"{"):
        return "index"
    # Shorter than the length of a header, a file of ours may still look like text.
    if _PRINTABLE.issuperset(head) and not ZIP.startswith(head):
        raise ValueError(
            f"{path}: a text, not a readable {kind} file: {_line(head)!r}. A download may have "
            "ended in an error message"
        )
    return kind


def _line(head: bytes) -> str:
    return " ".join(head.decode("utf-8", "replace").split())[:60]


def cut_off(path: Path, why: str) -> ValueError:
    """The one message for files whose end is missing."""
    return ValueError(f"{path}: the file is cut off: download it again ({why})")
