"""Safetensors files: reading with what is wrong told, and writing whole files only."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from internvideo_jax.weights.formats import HEADER_LIMIT, cut_off
from internvideo_jax.weights.rules import Tensors
from internvideo_jax.weights.wrappers import refuse_quantised

CHECKSUMS = "crc32"  # in the header of our own files: JSON, tensor -> checksum of its bytes
# Types that the format knows and numpy does not.
NARROW = ("F4", "F6_", "F8_")


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """All tensors, and the texts of the header.

    Raises:
      ValueError: cut off, damaged, or quantised.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = list(file.keys())
            types = {name: file.get_slice(name).get_dtype() for name in names}
            narrow = [name for name in names if types[name].startswith(NARROW)]
            if not narrow:
                tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except Exception as error:  # the library raises its own class, numpy's and Python's
        raise _explained(path, error) from error
    refuse_quantised(path, [f"{name} {types[name]}" for name in narrow])
    _check_checksums(path, tensors, metadata)
    return tensors, metadata


def _explained(path: Path, error: Exception) -> ValueError:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            return cut_off(path, f"only {size} bytes are there")
        if length > HEADER_LIMIT:
            return ValueError(f"{path}: not a readable safetensors file ({error})")
        if size < 8 + length:
            return cut_off(path, f"{size:,} bytes, and its header alone has {8 + length:,}")
        header = file.read(length)
    try:
        entries = json.loads(header)
        whole = (
            8
            + length
            + max(
                entry["data_offsets"][1]
                for name, entry in entries.items()
                if name != "__metadata__"
            )
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ValueError(f"{path}: damaged header, download it again ({error})")
    if size < whole:
        return cut_off(path, f"{size:,} of {whole:,} bytes")
    return ValueError(f"{path}: not a readable safetensors file ({error})")


def _check_checksums(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Only our own files have any."""
    if CHECKSUMS not in metadata:
        return
    try:
        known = dict(json.loads(metadata[CHECKSUMS]))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged header, its checksums cannot be read") from error
    found = checksums(tensors, metadata)
    wrong = sorted(each for each in {*known, *found} if known.get(each) != found.get(each))
    if wrong:
        raise ValueError(
            f"{path}: damaged, take another copy: {len(wrong)} of {len(found)} parts are not what "
            f"was written, first {wrong[0]}"
        )


def checksums(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, int]:
    """CRC-32 of every tensor, and of the other texts of the header."""
    texts = json.dumps({k: v for k, v in metadata.items() if k != CHECKSUMS}, sort_keys=True)
    return {
        "(header)": zlib.crc32(texts.encode()),
        **{name: _checksum(value) for name, value in tensors.items()},
    }


def _checksum(value: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def write(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a file at once: a killed process leaves what was there before."""
    with replaced(path) as temporary:
        save_file(dict(tensors), str(temporary), metadata)


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to; takes its place when all went well."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
