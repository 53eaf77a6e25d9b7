"""Weights by name: what a file name, an address or the name of a published model stands for.

`resolve` is what everything asks that takes weights. Files lie in a cache folder by their address,
`HOST/PATH`, and a mirror or an offline folder is laid out in the same way.
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from pathlib import Path

from data_pipelines.commands.exit_codes import PassingFault
from data_pipelines.records import storage
from internvideo_jax.weights import formats, remote, zoo
from internvideo_jax.weights.download import Absent, copy, fetch
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.folders import INDEX, NAMES, index_files

FOLDER, MIRROR, OFFLINE = "IVJ_WEIGHTS", "IVJ_WEIGHTS_MIRROR", "IVJ_WEIGHTS_OFFLINE"
WEB = ("https://", "http://")
HUB = "hf://"
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/(.+))?")


def cache_folder() -> Path:
    """Where weights are kept: $IVJ_WEIGHTS, else in the user's cache directory."""
    if given := os.environ.get(FOLDER):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "internvideo_jax" / "weights"


def resolve(source: str | os.PathLike[str]) -> Path:
    """The file or folder that is meant; what is not here yet is fetched.

    Args:
      source: a path; `hf://OWNER/REPOSITORY[@REVISION][/FILE]`; `https://...`; a file, run or
        checkpoint on an object store, such as `gs://BUCKET/RUN`; or the name of a published
        checkpoint (`ivj weights list`). What exists as a path is a path.

    Raises:
      ValueError: no such name, with the near matches; a model whose address is not known; a file
        that is not there, or not what it should be.
      PassingFault: a server that cannot be reached.
    """
    text = os.fspath(source)
    if text.startswith(HUB):
        return _from_hub(text)
    if text.startswith(WEB):
        return _address(text)
    if storage.is_remote(text):
        return remote.copied(text, _copies())
    path = Path(storage.local(text))
    if path.exists() or path.is_absolute() or text.startswith((".", "~")):
        return path
    entry = zoo.named(text)
    if entry is not None:
        return _published(entry)
    if len(path.parts) == 1 and not path.suffix:  # a word, so most likely a name
        try:
            zoo.find(text)
        except ValueError as error:
            raise ValueError(f"{text}: no such file or run, and {error}") from error
    return path


def is_remote(source: str) -> bool:
    """Whether this is an address, which has nothing to do with the working directory."""
    return source.startswith((HUB, *WEB)) or storage.is_remote(source)


def origin(source: str) -> str:
    """Where weights come from, as a result says it: an absolute path, or the address.

    Of a run on an object store the checkpoint that was taken.
    """
    place = resolve(source)
    if not storage.is_remote(source) or source.startswith((HUB, *WEB)):
        return str(place.absolute())
    return remote.address(source, place)


def _copies() -> Path:
    """Where copies of what is on object stores lie."""
    return cache_folder() / "remote"


def _published(entry: Entry) -> Path:
    """The file of a published checkpoint."""
    if entry.url:
        return _address(entry.url, sha256=entry.sha256, size=entry.bytes)
    for name in (entry.file, *(entry.name.partition("/")[2] + each for each in zoo.SUFFIXES)):
        place = cache_folder() / entry.source / name
        if name and place.is_file():
            return place
    file = entry.file or f"{entry.name.partition('/')[2]}.pth"
    raise ValueError(
        f"{entry.name}: no address of its file is known, only that it is published (docs/models.md "
        f"says where). Download it there and put it at {cache_folder() / entry.source / file}, or "
        "give its path"
    )


def _from_hub(text: str) -> Path:
    """A file of Hugging Face, or the folder of a repository with its weights."""
    found = _HUB.fullmatch(text)
    if found is None:
        raise ValueError(f"{text}: expected hf://OWNER/REPOSITORY[@REVISION][/FILE]")
    repository, revision, file = found.groups()
    base = f"{_hub()}/{repository}/resolve/{revision or 'main'}"
    if file:
        return _address(f"{base}/{file}")
    here = cache_folder() / _place(f"{base}/config.json")
    there = [name for name in NAMES if (here.parent / name).is_file()]
    for name in there or NAMES:
        try:
            folder = _address(f"{base}/{name}").parent
        except Absent:
            continue
        if not there:
            with contextlib.suppress(Absent):
                _address(f"{base}/config.json")
        return folder
    raise ValueError(
        f"{text}: has none of {', '.join(NAMES)}; name the weight file: {text}/FILE (see its page, "
        f"{_hub()}/{repository}/tree/{revision or 'main'})"
    )


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _address(url: str, *, sha256: str = "", size: int = 0) -> Path:
    """The file of an address, and beside it those that it names if it is an index."""
    target = cache_folder() / _place(url)
    if not target.is_file():
        _bring(url, target, sha256, size)
    if target.name.endswith(INDEX):
        base = url.rpartition("/")[0]
        for name in index_files(target):
            _address(f"{base}/{name}")
    return target


def _place(url: str) -> Path:
    """Where in a folder of weights the file of an address lies."""
    parts = urllib.parse.urlsplit(url)
    names = [urllib.parse.unquote(name) for name in parts.path.split("/") if name]
    odd = [name for name in names if name in (".", "..") or "/" in name or "\0" in name]
    if not parts.hostname or not names or odd or parts.path.endswith("/"):
        raise ValueError(f"{url}: not the address of a file")
    return Path(parts.netloc.rpartition("@")[2].replace(":", "_"), *names)


def _bring(url: str, target: Path, sha256: str, size: int) -> None:
    """From the mirror, else from its own server."""
    mirror, place = os.environ.get(MIRROR, ""), _place(url)
    on_disk = bool(mirror) and not mirror.startswith(WEB)
    if on_disk and (Path(mirror) / place).is_file():
        copy(Path(mirror) / place, target, sha256=sha256)
        return
    if os.environ.get(OFFLINE, "") not in ("", "0"):
        tried = f"{target}" + (f" and {mirror}/{place}" if on_disk else "")
        raise Absent(f"{url}: not in {tried}, and {OFFLINE} is set: nothing is fetched")
    try:
        if mirror and not on_disk:
            with contextlib.suppress(Absent):
                fetch(f"{mirror.rstrip('/')}/{place.as_posix()}", target, sha256=sha256, size=size)
        if not target.is_file():
            fetch(url, target, sha256=sha256, size=size)
    except PassingFault as error:
        raise PassingFault(f"{error}. Without network, put the file at {target}") from error
    try:
        formats.check_format(target)
    except ValueError as error:  # a page instead of weights, most often
        target.unlink()
        raise ValueError(f"{url}: {str(error).removeprefix(f'{target}: ')}") from error
