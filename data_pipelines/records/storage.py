"""Files anywhere: local paths by `pread`, every other URL by range requests through fsspec.

A path with a scheme (`gs://`, `s3://`, any protocol fsspec knows) is remote; a plain path or
`file://` is local. Remote operations are repeated with exponential back-off and jitter when the
failure is one that passes: time-outs, broken connections, short reads, server errors (5xx) and
requests to slow down (408, 429). Everything else, such as a missing object or a missing
permission, is raised at once.

Object stores replace objects as a whole, so `write_atomic` is atomic there as well. To other kinds
of storage nothing is written (`trees.require_writable`).
"""

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np

from data_pipelines.commands.exit_codes import PassingFault
from data_pipelines.records.transient import ShortReadError, passes, refusal

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_Result = TypeVar("_Result")
_PIECE = 8 * 2**20


class StorageError(PassingFault):
    """A remote operation that kept failing; names the path, the bytes, the attempts and why."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How remote operations are repeated.

    The wait before attempt k + 1 is drawn uniformly from the upper half of
    [0, min(longest, first * 2^k)] seconds, so that the hosts of a pod do not come back together.
    The default gives up after about a minute.
    """

    attempts: int = 8
    first: float = 0.5
    longest: float = 30.0


RETRY = Retry()


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is read through fsspec."""
    text = os.fspath(path)
    return _SCHEME.match(text) is not None and not text.startswith("file://")


def local(path: str | os.PathLike[str]) -> str:
    """A local path as the system takes it."""
    return os.fspath(path).removeprefix("file://")


# By process and by all that a URL says of where to connect: s3:// and gs:// the same for all
# buckets, sftp:// and its like one for every host, port and user.
_filesystems: dict[tuple[int, str, str], Any] = {}
_filesystems_lock = threading.Lock()


def _filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path inside it."""
    import fsspec
    import fsspec.core

    scheme = path.partition("://")[0]
    try:
        if "::" in path:
            return _retried(f"{path}: connecting", lambda: fsspec.core.url_to_fs(path))
        # One per process: fsspec itself keeps one per thread, each with its own connections.
        told = fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(path)
        key = os.getpid(), scheme, repr(sorted(told.items()))
        with _filesystems_lock:
            system = _filesystems.get(key)
            if system is None:
                # It logs what it raises, with a traceback.
                logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
                # Without its cache of listings: other processes write there as well.
                system, _ = _retried(
                    f"{path}: connecting",
                    lambda: fsspec.core.url_to_fs(path, use_listings_cache=False),
                )
                _filesystems[key] = system
        return system, system._strip_protocol(path)
    except ImportError as error:
        raise ImportError(
            f"{path}: {scheme}:// needs another package ({error}); "
            "pip install 'internvideo-jax[remote]' has those for gs:// and s3://"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: no file system for {scheme}:// ({error})") from error


def _forget_after_fork() -> None:
    # The lock may have been held by a thread that does not exist in the child.
    global _filesystems_lock
    _filesystems_lock = threading.Lock()
    _filesystems.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _retried(what: str, call: Callable[[], _Result]) -> _Result:
    """The result of a remote call, tried again as long as the failure may pass."""
    began, attempt = time.monotonic(), 0
    while True:
        try:
            return call()
        except Exception as error:  # libraries raise anything; what may not pass goes on
            if not passes(error):
                refused = refusal(what, error)
                if refused is error:
                    raise
                raise refused from error.__cause__  # an OSError between them may have any number
            attempt += 1
            if attempt >= RETRY.attempts:
                raise StorageError(
                    f"{what}: gave up after {attempt} attempts in {time.monotonic() - began:.1f} "
                    f"s; last error: {type(error).__name__}: {error}. Check the network, the "
                    "credentials and the state of the storage service, then start the run again: "
                    "it continues from its checkpoint"
                ) from error
        wait = min(RETRY.longest, RETRY.first * 2.0 ** (attempt - 1))
        # Unseeded on purpose: equal waits on all hosts are what the jitter is against.
        time.sleep(wait * np.random.default_rng().uniform(0.5, 1.0))


class Ranges:
    """A file opened for reading at any offset; safe to share between threads."""

    remote = False

    def __init__(self, path: str):
        self.path = path

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        raise NotImplementedError

    def pread(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset`; fewer only at the end of the file."""
        raise NotImplementedError

    def pread_many(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of several (size, offset) pairs, where possible at the same time."""
        return [self.pread(size, offset) for size, offset in wanted]

    def close(self) -> None:
        """Free what the file holds."""


class _LocalRanges(Ranges):
    """A descriptor that closes itself when the last user drops it.

    Eviction from a cache can then never close a file another thread is reading.
    """

    def __init__(self, path: str):
        super().__init__(path)
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def pread(self, size: int, offset: int) -> bytes:
        # A single call may return fewer bytes, and at most 2 GiB.
        data = self._once(size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        got = len(data)
        while got < size:
            data = self._once(size - got, offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def _once(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:  # a failing disk, a lost mount; the system names no file
            raise OSError(error.errno, error.strerror, self.path) from error

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # Not contextlib: at the end of the interpreter it may be gone already.
        try:  # noqa: SIM105
            self.close()
        except (AttributeError, OSError, TypeError):
            pass


class _RemoteRanges(Ranges):
    """An object behind fsspec; opening costs nothing, its size is asked for when needed."""

    remote = True

    def __init__(self, path: str, known_size: int | None):
        super().__init__(path)
        self._system, self._inner = _filesystem(path)
        self._size = known_size

    @property
    def size(self) -> int:
        if self._size is None:
            self._size = size(self.path)
        return self._size

    def pread(self, size: int, offset: int) -> bytes:
        expected = max(0, min(size, self.size - offset))
        if expected == 0:
            return b""

        def once() -> bytes:
            data = self._system.cat_file(self._inner, start=offset, end=offset + expected)
            if len(data) != expected:
                raise ShortReadError(f"{len(data)} of {expected} bytes came back")
            return bytes(data)

        return _retried(f"{self.path}: reading bytes {offset} to {offset + expected}", once)

    def pread_many(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        if len(wanted) < 2:
            return super().pread_many(wanted)
        bounds = [(offset, min(offset + size, self.size)) for size, offset in wanted]
        try:
            found = self._system.cat_ranges(
                [self._inner] * len(bounds),
                [start for start, _ in bounds],
                [end for _, end in bounds],
                on_error="return",
            )
        except Exception as error:  # as in _retried
            if not passes(error):
                raise
            found = [None] * len(bounds)
        # What failed is read again one by one, with the patience of pread.
        return [
            bytes(data)
            if isinstance(data, (bytes, bytearray)) and len(data) == end - start
            else self.pread(size, offset)
            for data, (start, end), (size, offset) in zip(found, bounds, wanted, strict=True)
        ]


def open_ranges(path: str | os.PathLike[str], size: int | None = None) -> Ranges:
    """Open a file for range reads.

    Args:
      path: local path or URL.
      size: of the file where it is known already; saves a request on remote storage.

    Raises:
      FileNotFoundError: a local file does not exist (a remote one is missed when it is read).
    """
    if is_remote(path):
        return _RemoteRanges(os.fspath(path), size)
    return _LocalRanges(local(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole content of a file. Raises FileNotFoundError."""
    if not is_remote(path):
        with open(local(path), "rb") as file:
            return file.read()
    system, inner = _filesystem(os.fspath(path))
    return _retried(f"{path}: reading", lambda: bytes(system.cat_file(inner)))


def read_text(path: str | os.PathLike[str]) -> str:
    """The whole content of a UTF-8 file. Raises FileNotFoundError, UnicodeDecodeError."""
    return read_bytes(path).decode("utf-8")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file, read in pieces. Raises FileNotFoundError."""
    digest, offset = hashlib.sha256(), 0
    with contextlib.closing(open_ranges(path)) as file:
        while data := file.pread(_PIECE, offset):
            digest.update(data)
            offset += len(data)
    return digest.hexdigest()


def create(path: str) -> BinaryIO:
    """A new local file in place of what a crash left under this name; never what a link names."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file so that a crash leaves either the old or the new content."""
    if is_remote(path):
        system, inner = _filesystem(os.fspath(path))
        _retried(f"{path}: writing", lambda: system.pipe_file(inner, data))
        return
    path = local(path)
    tmp = f"{path}.tmp"
    try:
        with create(tmp) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp)
        raise


def publish(tmp: str, path: str | os.PathLike[str]) -> None:
    """Move a finished file to its final place: remote, or local on the same file system."""
    if is_remote(path):
        upload(tmp, os.fspath(path))
        os.unlink(tmp)
    else:
        os.replace(tmp, local(path))


def upload(source: str | os.PathLike[str], path: str) -> None:
    """Copy a local file to an object store, where it is whole or not there."""
    system, inner = _filesystem(path)

    def once() -> None:
        system.put_file(os.fspath(source), inner)
        there, here = int(system.info(inner)["size"]), os.path.getsize(source)
        if there != here:  # a server that took the end of a broken connection for that of the file
            raise ShortReadError(f"{there} of {here} bytes arrived")

    _retried(f"{path}: uploading", once)


def copy(source: str, path: str) -> None:
    """Copy a remote file to another place of the same store, without bringing it here."""
    (system, inner), target = _filesystem(source), _filesystem(path)[1]
    _retried(f"{path}: copying from {source}", lambda: system.cp_file(inner, target))


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a file; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            system, inner = _filesystem(os.fspath(path))
            _retried(f"{path}: deleting", lambda: system.rm_file(inner))
        else:
            os.unlink(local(path))


def size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file. Raises FileNotFoundError."""
    if not is_remote(path):
        return os.stat(local(path)).st_size
    system, inner = _filesystem(os.fspath(path))
    return int(_retried(f"{path}: asking for its size", lambda: system.info(inner))["size"])


def version(path: str) -> str:
    """What changes when a remote file is written anew. Raises FileNotFoundError."""
    system, inner = _filesystem(path)
    return str(_retried(f"{path}: looking at it", lambda: system.ukey(inner)))


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file or directory."""
    if not is_remote(path):
        return os.path.exists(local(path))
    system, inner = _filesystem(os.fspath(path))
    with contextlib.suppress(FileNotFoundError):
        # Not `exists`, which takes every error for a "no".
        _retried(f"{path}: looking for it", lambda: system.info(inner))
        return True
    return False


def is_directory(path: str | os.PathLike[str]) -> bool:
    """Whether there is a local directory, or anything below a remote path."""
    if not is_remote(path):
        return os.path.isdir(local(path))
    with contextlib.suppress(FileNotFoundError):
        return bool(listdir(path))
    return False


def sizes(directory: str | os.PathLike[str]) -> dict[str, int]:
    """File name -> bytes for all files of a directory, on remote storage with one listing.

    Raises:
      FileNotFoundError: there is no such directory.
    """
    if not is_remote(directory):
        with os.scandir(local(directory)) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    system, inner = _filesystem(os.fspath(directory).rstrip("/"))
    found = _retried(f"{directory}: listing", lambda: system.ls(inner, detail=True, refresh=True))
    return {
        entry["name"].rstrip("/").rpartition("/")[2]: int(entry["size"] or 0)
        for entry in found
        if entry["type"] == "file"
    }


def listdir(directory: str | os.PathLike[str]) -> list[str]:
    """Sorted names in a directory. Raises FileNotFoundError."""
    if not is_remote(directory):
        return sorted(os.listdir(local(directory)))
    system, inner = _filesystem(os.fspath(directory).rstrip("/"))
    found = _retried(f"{directory}: listing", lambda: system.ls(inner, detail=False))
    return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


def below(directory: str) -> dict[str, int]:
    """Path from a remote directory -> bytes, of all files below it, sorted; maybe none."""
    system, inner = _filesystem(directory.rstrip("/"))
    found = _retried(f"{directory}: listing", lambda: system.find(inner, detail=True))
    start = len(inner.rstrip("/")) + 1
    return {name[start:]: int(info["size"] or 0) for name, info in sorted(found.items())}


def make_directory(path: str | os.PathLike[str]) -> None:
    """Make a local directory; object stores have none, only names with slashes."""
    if not is_remote(path):
        os.makedirs(local(path), exist_ok=True)


def join(directory: str | os.PathLike[str], name: str) -> str:
    """The path of a file in a directory."""
    if is_remote(directory):
        return f"{os.fspath(directory).rstrip('/')}/{name}"
    return os.path.join(os.fspath(directory), name)
