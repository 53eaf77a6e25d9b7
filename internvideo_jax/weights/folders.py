"""Folders of Hugging Face: which file of one holds the weights, and weights in several files.

An index (`model.safetensors.index.json`) names for every tensor the file that it lies in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from internvideo_jax.weights.formats import HEADER_LIMIT
from internvideo_jax.weights.rules import Tensors

INDEX = ".index.json"
# In the order in which transformers looks for them.
NAMES = (
    "model.safetensors",
    "model.safetensors" + INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX,
)
RUNS = ("checkpoints", "state")  # folders in a run and in a checkpoint
Read = Callable[[Path], Tensors]


def is_weights(path: Path) -> bool:
    """Whether this is a weight file or a folder of Hugging Face, and no run or checkpoint.

    Weights that were exported into the folder of a run do not stand for the run.
    """
    if not path.is_dir():
        return path.is_file()
    if any((path / name).is_dir() for name in RUNS):
        return False
    return any((path / name).is_file() for name in (*NAMES, "config.json"))


def weight_file(path: Path) -> Path:
    """The file itself, or of a folder the one that holds its weights or their index.

    Raises:
      ValueError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: no such weight file")
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    others = sorted(
        each.name for each in path.iterdir() if each.suffix in (".safetensors", ".bin", ".pth")
    )
    raise ValueError(
        f"{path}: a folder without weights; expected {', '.join(NAMES[:-1])} or {NAMES[-1]} in it"
        + (f". It has {others[0]}: name that file" if others else "")
    )


def read_index(path: Path, read: Read) -> Tensors:
    """The tensors of all files that an index names.

    Args:
      read: gives the tensors of one file.

    Raises:
      ValueError: no index; it and the files do not fit together; a file is missing or damaged.
    """
    where = _index(path)
    files = index_files(path)
    missing = [name for name in files if not (path.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(files)} files that it names are missing, first "
            f"{missing[0]}; download them into the same folder"
        )
    found: Tensors = {}
    for name in files:
        tensors = read(path.parent / name)
        expected = {tensor for tensor, file in where.items() if file == name}
        lost = sorted(expected - tensors.keys())
        other = sorted(tensors.keys() - expected)
        if lost or other:
            what = f"{len(lost)} tensors are not in it, first {lost[0]}" if lost else ""
            more = f"{len(other)} are in it unnamed, first {other[0]}" if other else ""
            raise ValueError(
                f"{path}: does not fit {name}: {'; '.join(filter(None, (what, more)))}. Download "
                "index and files of one version"
            )
        found |= tensors
    return {tensor: found[tensor] for tensor in where}


def index_files(path: Path) -> list[str]:
    """The files beside an index that it names; raises as `read_index` for what is no index."""
    return list(dict.fromkeys(_index(path).values()))


def _index(path: Path) -> dict[str, str]:
    """Tensor -> file beside the index."""
    if path.stat().st_size > HEADER_LIMIT:
        raise ValueError(f"{path}: JSON of {path.stat().st_size:,} bytes is no index of weights")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable index of weight files ({error})") from error
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not where:
        raise ValueError(
            f"{path}: JSON, not weights; expected an index with a weight_map, or name the weight "
            "file or its folder"
        )
    for tensor, name in where.items():
        plain = isinstance(name, str) and Path(name).name == name and "\0" not in name
        if not plain or name in ("", "..") or len(name) > 255:
            raise ValueError(
                f"{path}: names {name!r} as the file of {tensor}; expected the name of a file in "
                "the same folder"
            )
        if name.endswith(INDEX):
            raise ValueError(f"{path}: names {name} as the file of {tensor}, which is an index")
    return where


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice!r} is in it twice")
    return found
