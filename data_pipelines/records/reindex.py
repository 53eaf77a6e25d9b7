"""Index files made anew from the shards."""

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Callable

import numpy as np

from data_pipelines.records import frame_table, manifest, schema, storage
from data_pipelines.records.index import (
    CRC,
    ENTRY,
    Index,
    build_index,
    masked_crc,
    read_index,
    write_index,
)
from data_pipelines.records.reader import RecordSource

_DONE_SUFFIX = ".done"  # as in data_pipelines.ingest.work


def reindex(directory: str, say: Callable[[str], None]) -> int:
    """Write the index of every shard of a dataset anew, from the shards.

    An index of an older version becomes one of today's, and the manifest then records its checksum;
    the shard must be the one the manifest describes, by its digest.

    Returns:
      The number of shards that could not be indexed, or are not those of the manifest.

    Raises:
      FileNotFoundError, ValueError: there is no readable manifest.
    """
    found = manifest.load(directory)
    bad = 0
    splits = {}
    for name, split in found.splits.items():
        shards = []
        for shard in split.shards:
            path = storage.join(directory, shard.name)
            try:
                index, sha256, _ = rebuild_index(path)
            except (OSError, ValueError) as error:
                say(f"{path}: {error}")
                bad += 1
            else:
                if sha256 != shard.sha256:
                    say(
                        f"{path}: the shard is not the one the manifest describes; run "
                        f"ivj data verify {directory}"
                    )
                    bad += 1
                elif index.crc != shard.index_crc:
                    _update_done(path, index.crc)
                    shard = dataclasses.replace(shard, index_crc=index.crc)
            shards.append(shard)
        splits[name] = dataclasses.replace(split, shards=tuple(shards))
    if splits != dict(found.splits):
        manifest.save(dataclasses.replace(found, splits=splits))
        say("the indexes have a new version; the manifest was updated")
    return bad


def _update_done(shard: str, index_crc: int) -> None:
    """Let an ingest that is repeated recognise the shard as finished."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = json.loads(storage.read_text(shard + _DONE_SUFFIX))
        content["index_crc"] = index_crc
        storage.write_atomic(shard + _DONE_SUFFIX, json.dumps(content).encode())


def rebuild_index(
    shard: str | os.PathLike[str], visit: Callable[[int, bytes], None] | None = None
) -> tuple[Index, str, int]:
    """Write the index of a shard anew, from the shard: the same bytes as its writer wrote.

    Args:
      shard: path or URL of the shard.
      visit: called with the number and the bytes of every record; what it raises goes through.

    Returns:
      The index, the hex sha256 digest of the shard, and the number of frames in it.

    Raises:
      CorruptRecordError: a record is damaged.
      SchemaError: a record is no SequenceExample, or holds no frames.
    """
    path = os.fspath(shard)
    scanned = build_index(path)
    source = RecordSource([path], indexes=[scanned])
    entries = np.array(scanned.entries, dtype=ENTRY)
    digest = hashlib.sha256()
    blocks, checksums = [], []
    for i, data in enumerate(source):
        if visit is not None:
            visit(i, data)
        length, data_crc = struct.pack("<Q", len(data)), masked_crc(data)
        for part in (length, CRC.pack(masked_crc(length)), data, CRC.pack(data_crc)):
            digest.update(part)
        checksums.append(data_crc)
        block, frames = frame_table.pack(data, data_crc)
        blocks.append(block)
        entries[i]["frames"] = frames or len(schema.decode(data).frames)
    write_index(
        path,
        entries,
        scanned.shard_bytes,
        blocks=blocks,
        binding=(checksums[0], checksums[-1]) if checksums else None,
    )
    frames = int(entries["frames"].sum(dtype=np.int64))
    return read_index(path), digest.hexdigest(), frames
