"""Shards of others, used where they lie: an index beside each and a manifest, no conversion.

DMVR and Scenic write clips as `tf.train.SequenceExample` records in TFRecord files named
`BASE-00000-of-00032`, which the schema understands as they are. Adopting them reads every record
once, checks it, and writes what random access, range reads and the checks at start-up need.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence

from data_pipelines.records import manifest, schema, storage
from data_pipelines.records.index import INDEX_SUFFIX
from data_pipelines.records.manifest import Manifest, ShardInfo, SplitInfo
from data_pipelines.records.reindex import rebuild_index

_NOT_SHARDS = (INDEX_SUFFIX, ".json", ".jsonl", ".csv", ".txt", ".tmp", ".done", ".md")


class _Labels:
    """Names by class index and counts, collected over the records of all splits."""

    def __init__(self, classes: Sequence[str] | None):
        self._given = None if classes is None else tuple(classes)
        self._names: dict[int, tuple[str, str]] = {}  # index -> name, where it was found
        self._highest = -1
        self.counts: dict[str, dict[int, int]] = {}

    def add(self, split: str, record: schema.Record, where: str) -> None:
        if record.label_names and len(record.label_names) != len(record.labels):
            raise ValueError(
                f"{where}: clip/label/text has {len(record.label_names)} values, "
                f"clip/label/index has {len(record.labels)}; classes are counted by index, so both "
                "are needed, in the same order. Ingest the videos instead of adopting these shards"
            )
        counts = self.counts.setdefault(split, {})
        for position, label in enumerate(record.labels):
            if label < 0 or (self._given is not None and label >= len(self._given)):
                expected = "none below 0" if self._given is None else f"0 to {len(self._given) - 1}"
                raise ValueError(f"{where}: class index {label}, expected {expected}")
            counts[label] = counts.get(label, 0) + 1
            self._highest = max(self._highest, label)
            if record.label_names:
                self._add_name(label, record.label_names[position], where)

    def _add_name(self, label: int, name: str, where: str) -> None:
        known, there = self._names.setdefault(label, (name, where))
        if self._given is not None:
            known, there = self._given[label], "the given class list"
        if known != name:
            raise ValueError(
                f"{where}: class {label} is called {name!r}, in {there} it is {known!r}; the "
                "shards are of different datasets, or the class list is of another one"
            )

    def classes(self) -> tuple[str, ...]:
        """Names in order; a class that no record names is called by its number."""
        if self._given is not None:
            return self._given
        return tuple(
            self._names.get(index, (str(index), ""))[0] for index in range(self._highest + 1)
        )


def adopt(
    directory: str | os.PathLike[str],
    splits: Mapping[str, str],
    name: str,
    classes: Sequence[str] | None = None,
    *,
    flip_changes_label: bool = False,
) -> Manifest:
    """Make a directory of TFRecord shards a dataset, in place.

    Args:
      directory: where the shards are, local or remote; index files and the manifest go there too.
      splits: split name -> pattern of the shards' file names, for example
        {"train": "kinetics-train-*", "val": "kinetics-val-*"}. Order of the records: by file name.
      name: of the dataset.
      classes: class names by index; by default collected from the records' `clip/label/text`.
      flip_changes_label: whether a mirrored clip would belong to another class.

    Returns:
      The manifest that was written.

    Raises:
      FileNotFoundError: the directory does not exist.
      ValueError: a pattern matches nothing, or what another one does; the directory holds a
        dataset that was ingested; a record is not of this schema, or labels contradict each other.
        Index files written so far stay, and are written again next time.
      CorruptRecordError: a shard is damaged.
    """
    directory = os.fspath(directory)
    _check_free(directory)
    labels = _Labels(classes)
    found: dict[str, tuple[list[ShardInfo], int]] = {}
    versions = {schema.SCHEMA_VERSION}
    for split, names in _match(directory, splits).items():
        shards, frames = [], 0
        for shard in names:
            path = storage.join(directory, shard)

            def visit(number: int, data: bytes, path: str = path, split: str = split) -> None:
                where = f"{path}: record {number}"
                try:
                    record = schema.decode(data)
                except schema.SchemaError as error:
                    raise ValueError(f"{where}: {error}") from error
                labels.add(split, record, where)
                versions.add(schema.version_of(record.frames[:1]))

            index, sha256, count = rebuild_index(path, visit)
            shards.append(
                ShardInfo(shard, len(index.entries), index.shard_bytes, sha256, index.crc)
            )
            frames += count
        found[split] = (shards, frames)
    names_of_classes = labels.classes()
    result = Manifest(
        directory=directory,
        name=name,
        schema_version=max(versions),
        classes=names_of_classes,
        flip_changes_label=flip_changes_label,
        options={"adopted": dict(splits)},
        splits={
            split: SplitInfo(
                tuple(shards),
                sum(shard.records for shard in shards),
                frames,
                tuple(
                    labels.counts.get(split, {}).get(label, 0)
                    for label in range(len(names_of_classes))
                ),
            )
            for split, (shards, frames) in found.items()
        },
    )
    manifest.save(result)
    return result


def _check_free(directory: str) -> None:
    """Refuse to replace the manifest of an ingest; one of an earlier adoption is replaced."""
    if not storage.exists(storage.join(directory, manifest.FILE_NAME)):
        return
    if "adopted" not in manifest.load(directory).options:
        raise ValueError(
            f"{directory}: {manifest.FILE_NAME} is there already and was not made by adopting "
            "shards; it can be used as it is"
        )


def _match(directory: str, splits: Mapping[str, str]) -> dict[str, list[str]]:
    """Split name -> sorted names of its shards."""
    there = [name for name in storage.listdir(directory) if not name.endswith(_NOT_SHARDS)]
    result: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for split, pattern in splits.items():
        names = fnmatch.filter(there, pattern)
        if not names:
            shown = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
            raise ValueError(
                f"{directory}: no file matches {pattern!r} of split {split!r}; "
                f"found {shown or 'no shards'}"
            )
        for name in names:
            if name in owner:
                raise ValueError(
                    f"{directory}: {name} matches the patterns of split {owner[name]!r} and of "
                    f"{split!r}"
                )
            owner[name] = split
        _check_complete(directory, names)
        result[split] = names
    if not result:
        raise ValueError(f"{directory}: no splits given; pass for example train='NAME-train-*'")
    return result


def _check_complete(directory: str, names: Sequence[str]) -> None:
    """All of `BASE-00000-of-00032` must be there where the names say how many there are."""
    groups: dict[tuple[str, str], set[str]] = {}
    for name in names:
        head, of, total = name.removesuffix(".tfrecord").rpartition("-of-")
        base, dash, number = head.rpartition("-")
        if of and dash and total.isdecimal() and number.isdecimal():
            groups.setdefault((base, total), set()).add(number)
    for (base, total), numbers in groups.items():
        wanted = (str(number).zfill(len(total)) for number in range(int(total)))
        if len(numbers) != int(total):
            missing = next((number for number in wanted if number not in numbers), "?")
            raise ValueError(
                f"{directory}: {len(numbers)} of the {total} shards {base}-*-of-{total} are there, "
                f"{base}-{missing}-of-{total} is missing; copy it again"
            )
