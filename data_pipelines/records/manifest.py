"""The manifest: what a directory of shards contains, and whether it is all still there.

`manifest.json` is written last by the ingest, so its presence means that the dataset is
complete. A shard that was cut exactly at a record boundary looks perfectly healthy on its own;
only the counts kept here tell.
"""

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.records import schema, storage
from data_pipelines.records.index import INDEX_SUFFIX, Index, read_index, write_atomic
from data_pipelines.records.reader import RecordSource

FILE_NAME = "manifest.json"
CLASSES_FILE = "classes.json"  # the same class names, beside it

# Threads that open the indexes of a split: remote storage is all waiting, a local disk is not.
_OPENERS, _REMOTE_OPENERS = 4, 32

# What an ingest did before it had the option.
EARLIER_OPTIONS = {"pixels": "display", "storage": "jpeg"}

_SHARD_FIELDS = {"name": str, "records": int, "bytes": int, "sha256": str, "index_crc": int}


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard: file name, number of records, size, hex digest, checksum of its index."""

    name: str
    records: int
    bytes: int
    sha256: str
    index_crc: int


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """One split: its shards in order, totals, and records per class (empty without classes)."""

    shards: tuple[ShardInfo, ...]
    records: int
    frames: int
    label_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A dataset on disk.

    Attributes:
      directory: where it was loaded from; not part of its identity.
      name: prefix of the shard names.
      schema_version: of the records.
      classes: class names, the position being the index stored in the records.
      flip_changes_label: whether a horizontal flip changes the meaning of a clip.
      options: the ingest options that shaped the records.
      splits: by name.
      rejected: input rows that gave no record (listed in rejected.jsonl).
      partial: records of damaged videos that were only decoded in part (warnings.jsonl).
      inputs_sha256: digest of the input list the records were made from.
    """

    directory: str
    name: str
    schema_version: int
    classes: tuple[str, ...]
    flip_changes_label: bool
    options: Mapping[str, Any]
    splits: Mapping[str, SplitInfo]
    rejected: int = 0
    partial: int = 0
    inputs_sha256: str = field(default="")

    def split(self, name: str) -> SplitInfo:
        """The split of that name; ValueError with the names that exist otherwise."""
        if name in self.splits:
            return self.splits[name]
        near = difflib.get_close_matches(name, list(self.splits), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{self.directory}: no split {name!r}; found {', '.join(self.splits) or 'none'}{hint}"
        )

    def shard_paths(self, split: str) -> list[str]:
        """Paths of a split's shards, in record order."""
        return [storage.join(self.directory, shard.name) for shard in self.split(split).shards]

    @property
    def media(self) -> str:
        """Name of the media type (`records.media`) that the set declares: with frames or without.

        Videos and images may be mixed; which of them a record is, it says itself.
        """
        return "features" if self.options.get("media") == "features" else "video"

    def image_options(self) -> dict[str, str]:
        """How the ingest treated the pixels: `pixels` and `storage` of its options.

        Both are `unknown` of shards that somebody else made.
        """
        if "adopted" in self.options:
            return dict.fromkeys(EARLIER_OPTIONS, "unknown")
        return {name: str(self.options.get(name, old)) for name, old in EARLIER_OPTIONS.items()}

    def fingerprint(self, split: str) -> str:
        """Hex digest of what defines the records of a split and their order.

        The same wherever the directory lies; different as soon as a record, the order, the class
        list or the schema changes.
        """
        identity = {
            "schema_version": self.schema_version,
            "classes": list(self.classes),
            "shards": [[s.name, s.records, s.sha256] for s in self.split(split).shards],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def save(manifest: Manifest) -> None:
    """Write `manifest.json` into the manifest's directory, atomically."""
    content = {
        "name": manifest.name,
        "schema_version": manifest.schema_version,
        "classes": list(manifest.classes),
        "flip_changes_label": manifest.flip_changes_label,
        "options": dict(manifest.options),
        "inputs_sha256": manifest.inputs_sha256,
        "rejected": manifest.rejected,
        "partial": manifest.partial,
        "splits": {
            name: {
                "records": split.records,
                "frames": split.frames,
                "label_counts": list(split.label_counts),
                "shards": [dataclasses.asdict(shard) for shard in split.shards],
            }
            for name, split in sorted(manifest.splits.items())
        },
    }
    write_atomic(
        storage.join(manifest.directory, FILE_NAME), (json.dumps(content, indent=1) + "\n").encode()
    )


def load(directory: str | os.PathLike[str]) -> Manifest:
    """Read `manifest.json`, and compare its class names with `classes.json` where that is.

    Raises:
      FileNotFoundError: the directory does not exist, or holds no manifest.
      ValueError: the manifest is unreadable, incomplete, of a newer schema, or names other classes.
    """
    result = load_alone(directory)
    if difference := check_classes(result):
        raise ValueError(f"{difference}; {_REPEAT}")
    return result


def check_classes(manifest: Manifest) -> str:
    """What is wrong between `classes.json` and the class names of the manifest; "" if nothing.

    The names give a class its meaning and no checksum covers them. A dataset without the file, as
    shards of others are, is not at fault; nor is, to one who reads, a file that is unreadable.
    """
    if "adopted" in manifest.options:
        return ""
    path = storage.join(manifest.directory, CLASSES_FILE)
    try:
        names = json.loads(storage.read_text(path))
    except (OSError, ValueError, RecursionError):
        return ""
    if names == list(manifest.classes):
        return ""
    place = f"{manifest.directory}: {FILE_NAME} and {CLASSES_FILE}"
    if not isinstance(names, list) or len(names) != len(manifest.classes):
        count = len(names) if isinstance(names, list) else "no list of"
        return f"{place} disagree: {len(manifest.classes)} classes and {count} classes"
    index = next(i for i, name in enumerate(names) if name != manifest.classes[i])
    return f"{place} disagree: class {index} is {manifest.classes[index]!r} and {names[index]!r}"


def load_alone(directory: str | os.PathLike[str]) -> Manifest:
    """As `load`, whatever `classes.json` says."""
    directory = os.fspath(directory)
    path = storage.join(directory, FILE_NAME)
    # Object stores have no directories, only objects whose names begin alike.
    if not storage.is_remote(directory) and not storage.is_directory(directory):
        raise FileNotFoundError(
            f"{directory}: no such directory; expected the --out of `ivj ingest`"
        )
    try:
        content = json.loads(storage.read_text(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(_explain_missing(directory)) from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise ValueError(f"{path}: is not readable JSON ({error}); {_REPEAT}") from error
    return _parse(directory, content)


_REPEAT = (
    "copy it again from its origin, or repeat the ingest with the same options: finished shards "
    "are kept and the manifest is written anew"
)


def _explain_missing(directory: str) -> str:
    try:
        names = storage.listdir(directory)
    except FileNotFoundError:
        names = []
    if not names:
        return (
            f"{directory}: is empty; make shards with ivj ingest --source VIDEOS --out {directory}"
        )
    if "plan.json" in names:
        return (
            f"{directory}: has no {FILE_NAME}: the ingest has not finished; run it again with "
            "the same options to complete it"
        )
    return (
        f"{directory}: has no {FILE_NAME}; found {', '.join(names[:5])}"
        f"{', ...' if len(names) > 5 else ''}. Expected shards; of "
        "videos `ivj ingest --source VIDEOS --out SHARDS` makes them"
    )


class _Fields:
    """Typed access to parsed JSON; every complaint names the file and the field."""

    def __init__(self, path: str, value: Any, prefix: str = ""):
        self._path, self._value, self._prefix = path, value, prefix

    def get(self, key: str, kind: type) -> Any:
        value = self._value.get(key) if isinstance(self._value, dict) else None
        return self._checked(value, kind, f"{self._prefix}{key}")

    def tuple_of(self, key: str, kind: type) -> tuple[Any, ...]:
        return tuple(
            self._checked(value, kind, f"{self._prefix}{key}[{i}]")
            for i, value in enumerate(self.get(key, list))
        )

    def inside(self, key: str) -> "_Fields":
        return _Fields(self._path, self.get(key, dict), f"{self._prefix}{key}.")

    def each(self, key: str) -> list["_Fields"]:
        return [
            _Fields(self._path, value, f"{self._prefix}{key}[{i}].")
            for i, value in enumerate(self.get(key, list))
        ]

    def error(self, problem: str) -> ValueError:
        return ValueError(f"{self._path}: {self._prefix}{problem}; {_REPEAT}")

    def _checked(self, value: Any, kind: type, name: str) -> Any:
        # bool is an int to isinstance, and never a count.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(
                f"{self._path}: {name} is {value!r}, expected {kind.__name__}; {_REPEAT}"
            )
        return value


def _parse(directory: str, content: Any) -> Manifest:
    fields = _Fields(storage.join(directory, FILE_NAME), content)
    version = fields.get("schema_version", int)
    if version > schema.NEWEST_VERSION:
        raise ValueError(
            f"{storage.join(directory, FILE_NAME)}: schema version {version}, this program reads "
            f"up to {schema.NEWEST_VERSION}; update the program or ingest the videos again"
        )
    classes = fields.tuple_of("classes", str)
    splits = fields.inside("splits")
    return Manifest(
        directory=directory,
        name=fields.get("name", str),
        schema_version=version,
        classes=classes,
        flip_changes_label=fields.get("flip_changes_label", bool),
        options=fields.get("options", dict),
        splits={
            name: _parse_split(splits.inside(name), len(classes))
            for name in fields.get("splits", dict)
        },
        rejected=fields.get("rejected", int),
        partial=fields.get("partial", int),
        inputs_sha256=fields.get("inputs_sha256", str),
    )


def _parse_split(fields: _Fields, num_classes: int) -> SplitInfo:
    shards = tuple(
        ShardInfo(**{key: shard.get(key, kind) for key, kind in _SHARD_FIELDS.items()})
        for shard in fields.each("shards")
    )
    if any(os.path.basename(shard.name) != shard.name for shard in shards):
        raise fields.error("shards: a name is not a plain file name")
    records = fields.get("records", int)
    if records != sum(shard.records for shard in shards):
        raise fields.error(
            f"records is {records}, the shards add up to {sum(shard.records for shard in shards)}"
        )
    label_counts = fields.tuple_of("label_counts", int)
    if len(label_counts) != num_classes:
        raise fields.error(f"label_counts has {len(label_counts)} values, {num_classes} expected")
    return SplitInfo(shards, records, fields.get("frames", int), label_counts)


def open_split(
    directory: str | os.PathLike[str] | Manifest, split: str, *, check_crc: bool = True
) -> tuple[Manifest, RecordSource]:
    """Open a split for reading, refusing anything that is not what the ingest wrote.

    Checks counts, sizes and index checksums of all shards, which costs one small read per shard;
    damage inside a record is found when it is read (`check_crc`) or by
    `ivj data verify`.

    Raises:
      FileNotFoundError: no dataset there, or a shard or index is missing.
      ValueError: unknown or empty split, or manifest, index and shard disagree.
    """
    manifest = directory if isinstance(directory, Manifest) else load(directory)
    info = manifest.split(split)
    if info.records == 0:
        raise ValueError(
            f"{manifest.directory}: split {split!r} has no records; all its videos were rejected, "
            "see rejected.jsonl for the reasons"
        )
    paths = manifest.shard_paths(split)
    remote = storage.is_remote(manifest.directory)
    # One listing instead of two requests a shard.
    sizes = storage.sizes(manifest.directory) if remote else None
    pool = ThreadPoolExecutor(_REMOTE_OPENERS if remote else _OPENERS)
    try:
        indexes = list(
            pool.map(lambda path, shard: check_shard(path, shard, sizes), paths, info.shards)
        )
    finally:
        pool.shutdown(cancel_futures=True)
    source = RecordSource(paths, indexes=indexes, check_crc=check_crc, check_sizes=False)
    return manifest, source


def check_shard(path: str, info: ShardInfo, sizes: Mapping[str, int] | None = None) -> Index:
    """Compare one shard and its index with the manifest, without reading the records.

    Args:
      path: of the shard.
      info: what the manifest says of it.
      sizes: file name -> bytes of the directory, where it has been listed already.

    Raises:
      FileNotFoundError: shard or index is missing.
      ValueError: they are not the ones the manifest describes.
    """
    index_name = info.name + INDEX_SUFFIX
    try:
        if sizes is not None and info.name not in sizes:
            raise FileNotFoundError(path)
        size = storage.size(path) if sizes is None else sizes[info.name]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: the shard is missing, {FILE_NAME} lists it with {info.records} records; "
            "copy it again from its origin or repeat the ingest"
        ) from error
    if size != info.bytes:
        raise ValueError(
            f"{path}: has {size} bytes, {FILE_NAME} says {info.bytes}: truncated, or of another "
            "run. Copy it again from its origin, or delete it and repeat the ingest"
        )
    try:
        if sizes is not None and index_name not in sizes:
            raise FileNotFoundError(path + INDEX_SUFFIX)
        index = read_index(
            path, records=info.records, size=None if sizes is None else sizes[index_name]
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}{INDEX_SUFFIX}: the index is missing; copy it again or rebuild it: "
            f"ivj data reindex {os.path.dirname(path) or '.'}"
        ) from error
    if len(index.entries) != info.records:
        raise ValueError(
            f"{path}{INDEX_SUFFIX}: has {len(index.entries)} records, {FILE_NAME} says "
            f"{info.records}; copy shard and index again, or repeat the ingest"
        )
    if index.crc != info.index_crc:
        raise ValueError(
            f"{path}{INDEX_SUFFIX}: checksum {index.crc:#010x}, {FILE_NAME} says "
            f"{info.index_crc:#010x}: the index is older or belongs to another shard. Copy both "
            "again, or rebuild it: ivj data reindex "
            f"{os.path.dirname(path) or '.'}"
        )
    return index
