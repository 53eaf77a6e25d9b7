"""The rows that are left, into files that appear when they are complete."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.subset import rows
from data_pipelines.subset.options import SubsetOptions

_BUCKET = 1 << 17  # rows put in order at a time


def write(
    path: str, options: SubsetOptions, state: np.ndarray, order: np.ndarray | None, quiet: bool
) -> str:
    """Writes the rows with state 0 byte for byte as they were; returns the sha256 of the file.

    Args:
      order: (k,) their numbers in the order to write them; None is the order of the list.

    Raises:
      RuntimeError: the sources have other rows than they had.
    """
    if rows.kind(options.out) == "parquet":
        _write_parquet(options, state, path)
    else:
        lines = _Lines(options, state, quiet)
        if order is None:
            with _create(path, options.out) as file:
                for _, line in lines:
                    file.write(line)
        else:
            _write_ordered(lines, order, path, options.out)
    with open(path, "rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def replace(path: str, text: str) -> None:
    """Writes a small file at once."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


@contextlib.contextmanager
def _create(path: str, name: str) -> Iterator[Any]:
    """For writing; compressed if the name says so, without name and date in it."""
    with open(path, "wb") as file:
        if name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                yield packed
        else:
            yield file


class _Lines:
    """(number of the row, line) of the rows that are left."""

    def __init__(self, options: SubsetOptions, state: np.ndarray, quiet: bool):
        self._options, self._state, self._quiet = options, state, quiet

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        state, number, part = self._state, 0, b""
        bar = tqdm(desc="write", unit="row", total=len(state), disable=self._quiet or None)
        with bar:
            for path in self._options.sources:
                for line, _ in rows.stored(path):
                    _check(number < len(state))
                    if number % _BUCKET == 0:  # single entries of an array are slow to get
                        part = bytes(state[number : number + _BUCKET])
                    if part[number % _BUCKET] == 0 and isinstance(line, bytes):
                        # The last line of a file may have no end.
                        yield number, line if line.endswith(b"\n") else line + b"\n"
                    number += 1
                    bar.update()
        _check(number == len(state))


def _check(same: bool) -> None:
    if not same:
        raise RuntimeError("a source has other rows than it had when it was read; start again")


def _write_ordered(lines: _Lines, order: np.ndarray, path: str, name: str) -> None:
    """Distributes the lines over files by their place in the output, then sorts one at a time."""
    place = np.argsort(order, kind="stable")  # of the rows, taken by number
    folder = f"{path}.buckets"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    count = -(-len(order) // _BUCKET)
    buckets = [open(os.path.join(folder, str(i)), "wb") for i in range(count)]  # noqa: SIM115
    try:
        for target, (_, line) in zip(place.tolist(), lines, strict=True):
            buckets[target // _BUCKET].write(b"%d " % target + line)
    finally:
        for bucket in buckets:
            bucket.close()
    with _create(path, name) as file:
        for bucket in buckets:
            with open(bucket.name, "rb") as part:
                numbered = [line.split(b" ", 1) for line in part]
            for _, line in sorted(numbered, key=lambda item: int(item[0])):
                file.write(line)
            os.remove(bucket.name)


def _write_parquet(options: SubsetOptions, state: np.ndarray, path: str) -> None:
    parquet = rows.pyarrow_parquet()
    schemas = [parquet.ParquetFile(source).schema_arrow for source in options.sources]
    for source, schema in zip(options.sources, schemas, strict=True):
        if not schema.equals(schemas[0]):
            raise ValueError(f"{source}: has other columns than {options.sources[0]}")
    number = 0
    with parquet.ParquetWriter(path, schemas[0]) as writer:
        for source in options.sources:
            for batch in parquet.ParquetFile(source).iter_batches(batch_size=1 << 16):
                inside = np.asarray(state[number : number + len(batch)]) == 0
                _check(len(inside) == len(batch))
                number += len(batch)
                if inside.any():
                    writer.write_batch(batch.take(np.flatnonzero(inside)))
    _check(number == len(state))
