"""Weight files, folders of Hugging Face and runs on an object store, copied here to be read.

A copy lies in the cache folder of weights by its address, and is taken again as long as the
original is the same. Of a run only the newest complete checkpoint is copied, whole: optimizer state
and parameters are in the same files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path

from data_pipelines.records import storage, trees
from internvideo_jax.weights.download import alone
from internvideo_jax.weights.folders import NAMES, RUNS

# Written last into the folder of a checkpoint, with the size of each of its files; what lacks it is
# no checkpoint.
COMMITTED = "complete.json"
APART = "frozen-"  # what the folders of frozen parameters begin with, beside the steps
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".json")


def committed_steps(checkpoints: str) -> list[int]:
    """Numbers of the complete steps below the URL of a folder of checkpoints, ascending."""
    try:
        names = storage.listdir(checkpoints)
    except FileNotFoundError:
        return []
    steps = sorted(int(name) for name in names if name.isdigit())
    folders = [storage.join(checkpoints, str(step)) for step in steps]
    return [
        step
        for step, folder in zip(steps, folders, strict=True)
        if storage.exists(storage.join(folder, COMMITTED))
    ]


def copy_committed(folder: str, target: Path) -> None:
    """Copies a complete folder (of a step, or of frozen parameters) to a local path.

    Raises:
      FileNotFoundError: it is not complete.
      ValueError: files of it are not there, or of another size.
    """
    marker = storage.read_bytes(storage.join(folder, COMMITTED))
    mark = target / COMMITTED
    if mark.is_file() and mark.read_bytes() == marker:
        return
    expected = committed_files(folder, marker)
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    trees.download_tree(folder, part, expected)
    (part / COMMITTED).write_bytes(marker)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def committed_files(folder: str, marker: bytes | None = None) -> dict[str, int]:
    """Names of the files of a complete folder, with their sizes.

    Args:
      marker: what the file says that makes it complete, where that was read already.

    Raises:
      FileNotFoundError: it is not complete.
      ValueError: files of it are not there, or of another size.
    """
    marker = marker or storage.read_bytes(storage.join(folder, COMMITTED))
    expected = json.loads(marker)["files"]
    found = storage.below(folder)
    if wrong := [name for name, size in expected.items() if found.get(name) != size]:
        has = f"{found[wrong[0]]} bytes" if wrong[0] in found else "nothing"
        raise ValueError(
            f"{folder}: is damaged: {wrong[0]} has {has}, its {COMMITTED} says "
            f"{expected[wrong[0]]} bytes; remove that checkpoint"
        )
    return expected


def commit(folder: str, sizes: dict[str, int]) -> str:
    """Makes a folder complete, once everything is there; the text of the file that says so.

    Args:
      sizes: of its files, in bytes.

    Raises:
      PassingFault: something did not arrive.
    """
    found = storage.below(folder)
    if wrong := [name for name, size in sizes.items() if found.get(name) != size]:
        raise storage.StorageError(
            f"{folder}: {wrong[0]} has {found.get(wrong[0])} bytes there, {sizes[wrong[0]]} here"
        )
    # The name of a step may come again with other content, of the same sizes.
    content = {"files": dict(sorted(sizes.items())), "version": uuid.uuid4().hex}
    text = json.dumps(content, indent=1) + "\n"
    storage.write_atomic(storage.join(folder, COMMITTED), text.encode())
    return text


def copied(url: str, cache: Path) -> Path:
    """The local copy of what is at a URL: a file, a folder of Hugging Face or a checkpoint.

    Args:
      cache: folder of copies.

    Raises:
      ValueError: nothing of the kind is there.
      ImportError: the package for that protocol is missing.
    """
    url = url.rstrip("/")
    head, _, last = url.rpartition("/")
    if last.endswith(SUFFIXES):
        return _file(url, cache / _key(head) / last)
    if last.isdigit() and head.endswith(f"/{RUNS[0]}"):
        return _step(head.removesuffix(f"/{RUNS[0]}"), int(last), cache)
    run = head if last == RUNS[0] else url
    if steps := committed_steps(storage.join(run, RUNS[0])):
        return _step(run, steps[-1], cache)
    try:
        names = storage.sizes(url)
    except FileNotFoundError:
        names = {}
    if set(names) & {*NAMES, "config.json"}:
        folder = cache / _key(url)
        for name in names:
            if name.endswith(SUFFIXES):
                _file(storage.join(url, name), folder / name)
        return folder
    raise ValueError(
        f"{url}: no weights here; expected a run with a complete checkpoint in {RUNS[0]}/, one of "
        f"its steps, a folder of Hugging Face, or a file that ends in {', '.join(SUFFIXES[:-1])}"
    )


def address(url: str, copy: Path) -> str:
    """The URL of what was copied for `url`: of a run that of its checkpoint."""
    if copy.parent.name != RUNS[0]:
        return url
    run = url.rstrip("/").partition(f"/{RUNS[0]}")[0]
    return storage.join(storage.join(run, RUNS[0]), copy.name)


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def _file(url: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    note = target.with_name(f"{target.name}.version")
    with alone(target):
        try:
            version = storage.version(url)
        except FileNotFoundError:
            raise ValueError(f"{url}: no such weight file") from None
        if not (target.is_file() and note.is_file() and note.read_text() == version):
            note.unlink(missing_ok=True)
            trees.download(url, target)
            note.write_text(version)
    return target


def _step(run: str, step: int, cache: Path) -> Path:
    folder = storage.join(run, RUNS[0])
    here = cache / _key(run) / RUNS[0]
    here.mkdir(parents=True, exist_ok=True)
    with alone(here / str(step)):
        try:
            copy_committed(storage.join(folder, str(step)), here / str(step))
        except FileNotFoundError:
            known = ", ".join(map(str, committed_steps(folder))) or "none"
            raise ValueError(
                f"{folder}/{step}: no complete checkpoint here; complete steps: {known}"
            ) from None
        for name in storage.listdir(folder):
            if name.startswith(APART) and name in (here / str(step) / "meta/metadata").read_text():
                copy_committed(storage.join(folder, name), here / name)
    return here / str(step)
