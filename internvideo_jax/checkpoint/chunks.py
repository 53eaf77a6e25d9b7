"""Which bytes of which files hold an array, in a folder that Orbax wrote.

The format is TensorStore's OCDBT: `manifest.ocdbt` names the root of a tree, whose nodes name the
chunks of every array, all of them ranges of bytes of files. So a process reads the nodes from an
object store, and then the chunks that it needs, into files of the same names that are empty
elsewhere. https://google.github.io/tensorstore/kvstore/ocdbt/
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore as ts

from data_pipelines.records import storage, trees
from internvideo_jax.types import Tree, flatten_paths

MANIFEST = "manifest.ocdbt"
_ARRAY = ".zarray"  # says how an array is cut into chunks


class Range(NamedTuple):
    """Bytes `start` to `end` of the file `name`, which is a path from the folder."""

    name: str
    start: int
    end: int


# By key, `params.encoder.kernel/0.1`: where the chunk is, or a small one itself.
Chunks = dict[str, Range | bytes]


def read_index(folder: Path, bring: Callable[[Sequence[Range]], None]) -> Chunks:
    """What a folder with a manifest holds.

    Args:
      bring: is called with nodes before they are read, to put them there.

    Raises:
      ValueError: the manifest or a node is not what was written.
    """
    store = ts.KvStore.open(f"file://{folder.absolute()}/").result()
    versions = _dumped(store, None)["versions"]
    newest = max(versions, key=lambda version: version["generation_number"])
    found: Chunks = {}
    level = [(b"", newest["root"]["location"])] if "location" in newest["root"] else []
    while level:
        bring([_range(location) for _, location in level])
        below = []
        for prefix, location in level:
            for entry in _dumped(store, location)["entries"]:
                if "location" in entry:
                    below.append((prefix + entry["subtree_common_prefix"], entry["location"]))
                    continue
                where = entry.get("indirect_value")
                value = entry["inline_value"] if where is None else _range(where)
                found[(prefix + entry["key"]).decode()] = value
        level = below
    return found


def _dumped(store: ts.KvStore, node: str | None) -> dict[str, Any]:
    try:
        return ts.ocdbt.dump(store, node).result()
    except Exception as error:  # tensorstore raises anything
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"the index of its arrays cannot be read ({what})") from error


def _range(location: str) -> Range:
    """Of `value:ocdbt.process_0/:d/68db75:0:44963`: kind, folder, file, offset, length."""
    base, rest = location.split(":", 2)[1:]
    name, offset, length = rest.rsplit(":", 2)
    return Range(base + name, int(offset), int(offset) + int(length))


def bring_index(url: str, folder: Path) -> None:
    """Copies the manifest and the nodes of a folder on an object store.

    Raises:
      ValueError: they are damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trees.download(storage.join(url, MANIFEST), folder / MANIFEST)
    try:
        read_index(folder, lambda ranges: _bring(url, folder, ranges))
    except ValueError as error:
        raise ValueError(f"{url}: is damaged: {error}; remove that checkpoint") from error


def bring_arrays(url: str, folder: Path, targets: Tree) -> None:
    """Copies the chunks that this process needs of arrays, once their index is here.

    Args:
      targets: shapes with shardings, by the paths under which the arrays were saved.

    Raises:
      RuntimeError: the disk has no room for them.
    """
    chunks = read_index(folder, lambda ranges: None)
    _bring(url, folder, sorted(needed(chunks, targets)))


def needed(chunks: Chunks, targets: Tree) -> set[Range]:
    """Where the chunks are that hold what this process has of arrays.

    All of them where an array was not stored as it is known here.
    """
    every = {where for where in chunks.values() if isinstance(where, Range)}
    arrays: dict[str, dict[str, Range | bytes]] = {}
    for key, value in chunks.items():
        name, _, last = key.rpartition("/")
        arrays.setdefault(name, {})[last] = value
    wanted = set()
    for path, target in flatten_paths(targets).items():
        array = arrays.get(path.replace("/", "."), {})
        described = array.pop(_ARRAY, None)
        grid = json.loads(described) if isinstance(described, bytes) else {}
        if tuple(grid.get("shape", ())) != target.shape or "chunks" not in grid:
            return every
        names = set(_chunk_names(grid, target))
        wanted |= {where for name, where in array.items() if name in names}
    return {where for where in wanted if isinstance(where, Range)}


def _chunk_names(grid: Mapping[str, Any], target: Any) -> Iterator[str]:
    """Names of the chunks that overlap with the shards on the devices of this process."""
    indices = target.sharding.addressable_devices_indices_map(target.shape)
    spans = set()
    for index in indices.values():
        bounds = (part.indices(size) for part, size in zip(index, target.shape, strict=True))
        spans.add(
            tuple(
                range(start // size, math.ceil(stop / size))
                for (start, stop, _), size in zip(bounds, grid["chunks"], strict=True)
            )
        )
    separator = grid.get("dimension_separator", ".")
    for span in spans:
        for places in itertools.product(*span):
            yield separator.join(map(str, places)) or "0"


def _bring(url: str, folder: Path, ranges: Sequence[Range]) -> None:
    needs, free = sum(each.end - each.start for each in ranges), shutil.disk_usage(folder).free
    if needs > free:
        raise RuntimeError(
            f"{folder} on {socket.gethostname()}: {free / 2**20:.0f} MiB free, "
            f"{needs / 2**20:.0f} MiB needed for the part of {url} that this process reads; free "
            "space there, or set IVJ_STAGING to another folder"
        )
    trees.download_ranges(url, folder, ranges)
