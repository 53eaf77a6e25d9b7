"""Folders of files on object stores, as a whole: copied, removed, filled from a local folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from data_pipelines.records import storage

# Protocols that replace a file as a whole or not at all. Of others (sftp, hdfs, ftp, smb ...) a
# connection that breaks would leave half a file under its final name.
REPLACING = {"abfs", "abfss", "az", "gcs", "gs", "memory", "oci", "oss", "s3", "s3a"}
THREADS = 8  # files copied or removed at a time
_PIECE = 8 * 2**20
_LARGE = 64 * 2**20
_Thing = TypeVar("_Thing")


def require_writable(what: str, path: str) -> None:
    """ValueError that names `what` unless files can be written and deleted below a remote path.

    Writes an empty file there and deletes it.
    """
    scheme = path.partition("://")[0]
    if scheme not in REPLACING:
        known = ", ".join(f"{each}://" for each in sorted(REPLACING))
        raise ValueError(
            f"{what}={path}: {scheme}:// is only read, since a broken connection could leave half "
            f"a file there; expected a local path or one of {known}"
        )
    if not path.partition("://")[2].strip("/"):
        raise ValueError(f"{what}={path}: names no bucket; expected {scheme}://BUCKET/FOLDER")
    probe = storage.join(path, f".ivj-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        storage.write_atomic(probe, b"")
        storage.remove(probe)
    except ImportError as error:  # names the extra
        raise ValueError(f"{what}={path}: {str(error).removeprefix(f'{probe}: ')}") from error
    except OSError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{what}={path}: cannot be written ({text})") from error


def download(path: str, local: str | os.PathLike[str]) -> None:
    """Copy a remote file to a local path, where it is whole or not there.

    Raises:
      FileNotFoundError: there is no such file.
    """
    tmp, offset = f"{os.fspath(local)}.{os.getpid()}.tmp", 0
    source = storage.open_ranges(path)
    try:
        with storage.create(tmp) as file:
            while data := source.pread(_PIECE, offset):
                file.write(data)
                offset += len(data)
        os.replace(tmp, local)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp)
        raise


def download_tree(directory: str, local: Path, names: Iterable[str] | None = None) -> None:
    """Copy files of a remote directory into a local one.

    Args:
      names: paths from the directory; by default all that is below it.
    """
    wanted = list(storage.below(directory) if names is None else names)
    for folder in {(local / name).parent for name in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
    _each(lambda name: download(storage.join(directory, name), local / name), wanted)


def download_ranges(directory: str, local: Path, ranges: Iterable[tuple[str, int, int]]) -> None:
    """Copy parts of remote files to the same places of files in a local folder.

    What else such a file has is left; where it has nothing, it is a hole.

    Args:
      ranges: (path from the directory, first byte, byte behind the last) each.
    """
    pieces: list[tuple[str, int, int]] = []
    for name, start, end in sorted(ranges):
        last = pieces[-1] if pieces else ("", 0, 0)
        if last[0] == name and last[2] >= start and end - last[1] <= _LARGE:
            pieces[-1] = (name, last[1], max(end, last[2]))
            continue
        pieces += [(name, at, min(at + _LARGE, end)) for at in range(start, end, _LARGE)]
    for folder in {(local / name).parent for name, _, _ in pieces}:
        folder.mkdir(parents=True, exist_ok=True)

    def copy(piece: tuple[str, int, int]) -> None:
        name, start, end = piece
        data = storage.open_ranges(storage.join(directory, name), end).pread(end - start, start)
        file = os.open(local / name, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(file, memoryview(data)[written:], start + written)
        finally:
            os.close(file)

    _each(copy, pieces)


def files_below(local: Path) -> list[str]:
    """Sorted paths, from a local folder, of all files below it."""
    found = (path for path in local.rglob("*") if path.is_file())
    return sorted(path.relative_to(local).as_posix() for path in found)


def upload_tree(local: Path, directory: str, names: Iterable[str] | None = None) -> None:
    """Copy files of a local folder into a remote directory.

    Args:
      names: paths from the folder; by default all that is below it.
    """
    wanted = files_below(local) if names is None else names
    _each(lambda name: storage.upload(local / name, storage.join(directory, name)), wanted)


def copy_tree(source: str, directory: str) -> None:
    """Copy all that is below a remote directory to another one of the same store."""
    names = storage.below(source)
    _each(
        lambda name: storage.copy(storage.join(source, name), storage.join(directory, name)), names
    )


def remove_tree(directory: str) -> None:
    """Delete all that is below a remote directory."""
    _each(lambda name: storage.remove(storage.join(directory, name)), storage.below(directory))


def _each(work: Callable[[_Thing], None], things: Iterable[_Thing]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(work, things):
            pass


class Outbox:
    """A folder for results: a local one itself; a remote one through a local one in its stead.

    Programs write below `local`. `push` copies what is new or changed there to `place`; for a local
    place it does nothing, as files are where they should be.

    Args:
      place: local path or URL.
      local: the folder in its stead, made where it does not exist; by default a temporary one.
      without: names directly below that are not copied.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        local: Path | None = None,
        without: Collection[str] = (),
    ):
        self.remote = storage.is_remote(place)
        self.place = os.fspath(place).rstrip("/") if self.remote else os.fspath(place)
        self._made = ""
        if not self.remote:
            local = Path(storage.local(place))
        elif local is None:
            local = Path(self._made_folder())
        else:
            local.mkdir(parents=True, exist_ok=True)
        self.local = local
        self._without = frozenset(without)
        self._pushed: dict[str, tuple[int, int]] = {}  # size and time of what was copied
        self._lock = threading.Lock()

    def _made_folder(self) -> str:
        self._made = tempfile.mkdtemp(prefix="ivj-out-")
        return self._made

    def pull(self, only: Collection[str] = (), but: Collection[str] = ()) -> None:
        """Copies what is at the place into the local folder, but for what is left out.

        Args:
          only: names directly below the place; empty: all.
          but: such names that stay there.
        """
        if not self.remote:
            return
        names = [name for name in storage.below(self.place) if self._ours(name)]
        tops = ((name, name.partition("/")[0]) for name in names)
        names = [name for name, top in tops if (not only or top in only) and top not in but]
        download_tree(self.place, self.local, names)
        self._pushed.update((name, self._state(name)) for name in names)

    def push(self, last: str = "") -> None:
        """Copies what is new or changed; RuntimeError, OSError where it cannot be.

        Args:
          last: a file that is copied when all others are there.
        """
        if not self.remote:
            return
        with self._lock:
            known = self._pushed
            changed = [name for name in self._files() if known.get(name) != self._state(name)]
            _each(self.push_one, (name for name in changed if name != last))
            if last in changed:
                self.push_one(last)

    def push_one(self, name: str) -> None:
        """Copies one file."""
        state, url = self._state(name), storage.join(self.place, name)
        try:
            if state[0] > _LARGE:
                storage.upload(self.local / name, url)
            else:  # in one piece, as somebody may be appending to it
                storage.write_atomic(url, (self.local / name).read_bytes())
        except FileNotFoundError:  # replaced by a later one, which the next call copies
            return
        self._pushed[name] = state

    def _files(self) -> Iterator[str]:
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            if path.is_file() and self._ours(name) and path.suffix != ".tmp":
                yield name

    def _ours(self, name: str) -> bool:
        return name.partition("/")[0] not in self._without

    def _state(self, name: str) -> tuple[int, int]:
        try:
            found = (self.local / name).stat()
        except FileNotFoundError:
            return -1, 0
        return found.st_size, found.st_mtime_ns

    def close(self) -> None:
        """Removes a temporary folder; what was not pushed is lost."""
        if self._made:
            shutil.rmtree(self._made, ignore_errors=True)

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
