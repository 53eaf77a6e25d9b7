"""Companion shards: arrays that belong to the records of a split, in its order.

Features of a frozen teacher, for example, are computed once and read beside the clips. A
companion is a directory of its own with one shard for each shard of the split, record by record in
the same order, so that one record number finds both::

    DIRECTORY/companion.json                            which split, by fingerprint, and the shards
    DIRECTORY/NAME-SPLIT-FINGERPRINT-00000-of-00004.tfrecord, .idx

The shards are framed and indexed like any other (`records.reader`); a record is the
safetensors form of its named arrays, of any shape, in any type safetensors has. They can be
written in any order, by several processes or hosts, and those that are there already are kept; the
manifest is written last, so its presence means that the companion is complete.

Writing::

    writer = CompanionWriter("features/", "teacher", manifest, "train")
    for number in writer.missing():
        with writer.shard(number) as shard:
            for index in writer.records(number):     # record numbers of the split
                shard.append({"features": features_of(index)})
    writer.finish()
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from data_pipelines.records import manifest as manifests
from data_pipelines.records import storage
from data_pipelines.records.index import (
    CorruptRecordError,
    IndexFileError,
    read_index,
)
from data_pipelines.records.manifest import Manifest, ShardInfo
from data_pipelines.records.reader import RecordSource, ShardWriter

FILE_NAME = "companion.json"

_VERSION = 1
_REPEAT = "copy the companion again from its origin, or delete the directory and compute it again"

_DTYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}
_WRITABLE = frozenset(map(np.dtype, _DTYPES.values()))


class CompanionError(ValueError):
    """A companion that is incomplete, damaged, or of another dataset."""


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Serialise named arrays; equal arrays give equal bytes.

    Raises:
      ValueError: no arrays, something that is no array, or a type safetensors does not have.
    """
    if not arrays:
        raise ValueError("no arrays given; a record of a companion holds at least one")
    plain: dict[str, np.ndarray] = {}
    for name, array in sorted(arrays.items()):
        if not isinstance(array, np.ndarray) or array.dtype.newbyteorder("=") not in _WRITABLE:
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(
                f"array {name!r} is {kind}, expected a numpy array of one of "
                + ", ".join(sorted(dtype.name for dtype in _WRITABLE))
            )
        # order="C" because the library writes the memory as it lies.
        plain[name] = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return safetensors.numpy.save(plain)


def decode(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a record, in memory of their own.

    Raises:
      CompanionError: the bytes are not safetensors, or hold a type unknown here.
    """
    try:
        # Not safetensors.numpy.load, which writes bfloat16 but does not read it.
        return {
            name: np.frombuffer(spec["data"], _DTYPES[spec["dtype"]]).reshape(spec["shape"])
            for name, spec in safetensors.deserialize(data)
        }
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise CompanionError(f"{len(data)} bytes are not a record of arrays ({error})") from error
    except KeyError as error:
        raise CompanionError(f"array type {error} cannot be read here") from error


class CompanionShard:
    """One shard being written; see `CompanionWriter.shard`."""

    def __init__(self, writer: ShardWriter, expected: int):
        self._writer, self._expected = writer, expected

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add the arrays of the next record; errors as in `encode`."""
        if self._writer.count == self._expected:
            raise ValueError(
                f"{self._writer.path}: the shard it belongs to has {self._expected} records; "
                "one more was appended"
            )
        self._writer.append(encode(arrays))


class CompanionWriter:
    """Writes the companion of one split.

    Args:
      directory: of the companion, made if need be; several splits may share it.
      name: prefix of the shard names.
      manifest, split: what the companion belongs to.

    Raises:
      ValueError: no such split, a name that cannot be part of a file name, or the directory is
        that of a dataset.
    """

    def __init__(
        self, directory: str | os.PathLike[str], name: str, manifest: Manifest, split: str
    ):
        self.directory, self.name, self.split = os.fspath(directory), name, split
        if not name or name.startswith(".") or os.sep in name or "/" in name:
            raise ValueError(f"companion name {name!r} cannot be part of a file name")
        if storage.exists(storage.join(self.directory, manifests.FILE_NAME)):
            raise ValueError(
                f"{self.directory}: is a dataset; give the companion a directory of its own"
            )
        self._info = manifest.split(split)
        self.fingerprint = manifest.fingerprint(split)
        storage.make_directory(self.directory)

    def path(self, number: int) -> str:
        """Path of a shard of the companion."""
        name = (
            f"{self.name}-{self.split}-{self.fingerprint[:12]}-"
            f"{number:05d}-of-{len(self._info.shards):05d}.tfrecord"
        )
        return storage.join(self.directory, name)

    def records(self, number: int) -> range:
        """Record numbers of the split that a shard holds."""
        counts = [shard.records for shard in self._info.shards]
        low = sum(counts[:number])
        return range(low, low + counts[number])

    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be written."""
        return [k for k in range(len(self._info.shards)) if not self._is_complete(k)]

    def _is_complete(self, number: int) -> bool:
        # A shard under its final name is whole; of the one whose index was not written, none is.
        try:
            index = read_index(self.path(number))
            size = storage.size(self.path(number))
        except (FileNotFoundError, IndexFileError):
            return False
        return index.shard_bytes == size and len(index.entries) == len(self.records(number))

    @contextlib.contextmanager
    def shard(self, number: int) -> Iterator[CompanionShard]:
        """Write one shard: append the arrays of `records`, in order, inside the block.

        Nothing is left of a shard whose block raised.

        Raises:
          ValueError: at the end of the block, when records are missing.
        """
        expected = len(self.records(number))
        with ShardWriter(self.path(number)) as writer:
            yield CompanionShard(writer, expected)
            if writer.count != expected:
                raise ValueError(
                    f"{writer.path}: {writer.count} records were appended, the shard it belongs "
                    f"to has {expected}"
                )

    def finish(self) -> None:
        """Write the manifest, once all shards are there; other splits in it are kept.

        Raises:
          CompanionError: shards are missing, or the directory belongs to another companion.
        """
        missing = self.missing()
        if missing:
            raise CompanionError(
                f"{self.directory}: {len(missing)} of {len(self._info.shards)} shards of split "
                f"{self.split!r} are missing, the first is "
                f"{os.path.basename(self.path(missing[0]))}; write them first"
            )
        content = _read(self.directory) if _exists(self.directory) else {"splits": {}}
        if content.get("name", self.name) != self.name:
            raise CompanionError(
                f"{self.directory}: holds the companion {content['name']!r}, not {self.name!r}; "
                "use a directory for each"
            )
        shards = []
        for number in range(len(self._info.shards)):
            path = self.path(number)
            index = read_index(path)
            info = ShardInfo(
                name=os.path.basename(path),
                records=len(index.entries),
                bytes=index.shard_bytes,
                sha256=storage.sha256(path),
                index_crc=index.crc,
            )
            shards.append(dataclasses.asdict(info))
        kept = {
            split: {**found, "shards": [dataclasses.asdict(shard) for shard in found["shards"]]}
            for split, found in content["splits"].items()
        }
        splits = {**kept, self.split: {"fingerprint": self.fingerprint, "shards": shards}}
        content = {"version": _VERSION, "name": self.name, "splits": splits}
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        storage.write_atomic(storage.join(self.directory, FILE_NAME), text.encode())


class Companion(Sequence[dict[str, np.ndarray]]):
    """The arrays of a split by record number; like its source, safe to share and to pickle.

    Attributes:
      name: of the companion.
      source: the records as bytes.
      digests: SHA-256 of every shard, as its manifest has it.
    """

    def __init__(self, name: str, source: RecordSource, digests: Sequence[str] = ()):
        self.name, self.source, self.digests = name, source, tuple(digests)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        """Arrays of record `index`.

        Raises:
          IndexError: outside 0 <= index < len(self).
          CorruptRecordError: the record is damaged; the message names shard, record and offset.
        """
        data = self.source[index]
        try:
            return decode(data)
        except CompanionError as error:
            shard, record, offset = self.source.locate(index)
            raise CorruptRecordError(shard, record, offset, str(error)) from error

    def __repr__(self) -> str:
        return f"Companion({self.name!r}, {self.source!r})"


def open_companion(
    directory: str | os.PathLike[str], manifest: Manifest, split: str, *, check_crc: bool = True
) -> Companion:
    """Open the companion of a split, refusing one that belongs to other records.

    Args:
      directory: of the companion.
      manifest, split: the records it is to be read beside.
      check_crc: verify the checksum of every record read.

    Raises:
      FileNotFoundError: there is no companion, or a shard of it is missing.
      CompanionError: it has no such split, or one made for other records; or its manifest is
        unreadable.
      ValueError: its manifest, index and shards disagree.
    """
    directory = os.fspath(directory)
    content = _read(directory)
    info = manifest.split(split)
    if split not in content["splits"]:
        raise CompanionError(
            f"{directory}: has nothing for split {split!r}, only for "
            f"{', '.join(content['splits']) or 'none'}; compute it for that split too"
        )
    found = content["splits"][split]
    expected = manifest.fingerprint(split)
    if found["fingerprint"] != expected:
        raise CompanionError(
            f"{directory}: was made for other records than split {split!r} of "
            f"{manifest.directory}: its fingerprint is {found['fingerprint']}, that of the split "
            f"is {expected}. Use the dataset it was made for, or compute it again"
        )
    counts = [shard.records for shard in found["shards"]]
    if counts != [shard.records for shard in info.shards]:
        raise CompanionError(
            f"{directory}: its shards of split {split!r} have {counts} records, not those of the "
            f"split; {_REPEAT}"
        )
    paths = [storage.join(directory, shard.name) for shard in found["shards"]]
    indexes = [
        manifests.check_shard(path, shard)
        for path, shard in zip(paths, found["shards"], strict=True)
    ]
    source = RecordSource(paths, indexes=indexes, check_crc=check_crc)
    return Companion(content["name"], source, [shard.sha256 for shard in found["shards"]])


def _exists(directory: str) -> bool:
    return storage.exists(storage.join(directory, FILE_NAME))


_SHARD_FIELDS = {"name": str, "records": int, "bytes": int, "sha256": str, "index_crc": int}


def _read(directory: str) -> dict[str, Any]:
    """`companion.json` with its shards as ShardInfo."""
    path = storage.join(directory, FILE_NAME)
    if not storage.is_remote(directory) and not storage.is_directory(directory):
        raise FileNotFoundError(f"{directory}: no such directory; expected a companion")
    try:
        content = json.loads(storage.read_text(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{directory}: has no {FILE_NAME}: it is no companion, or CompanionWriter.finish() was "
            "not reached; run the program that computes it again, it keeps finished shards"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CompanionError(f"{path}: is not readable JSON ({error}); {_REPEAT}") from error
    try:
        version, name, splits = content["version"], content["name"], content["splits"]
        if not isinstance(version, int) or not isinstance(name, str):
            raise TypeError("version or name")
        if version > _VERSION:
            raise CompanionError(
                f"{path}: version {version}, this program reads up to {_VERSION}; update it"
            )
        result = {}
        for split, found in splits.items():
            shards = tuple(_shard(shard) for shard in found["shards"])
            if not isinstance(found["fingerprint"], str):
                raise TypeError("fingerprint")
            result[split] = {"fingerprint": found["fingerprint"], "shards": shards}
    except (KeyError, TypeError, AttributeError) as error:
        raise CompanionError(f"{path}: is incomplete or not a companion ({error!r})") from error
    return {"version": version, "name": name, "splits": result}


def _shard(fields: Mapping[str, Any]) -> ShardInfo:
    for key, kind in _SHARD_FIELDS.items():
        if not isinstance(fields[key], kind) or isinstance(fields[key], bool):
            raise TypeError(f"shard {key}")
    if os.path.basename(fields["name"]) != fields["name"]:
        raise TypeError("shard name")
    return ShardInfo(**{key: fields[key] for key in _SHARD_FIELDS})
