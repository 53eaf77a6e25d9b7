"""A file system for the tests of the storage layer: fsspec's memory one, counted and disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import infer_storage_options


class ServerError(Exception):
    """What an HTTP library raises for a 5xx."""

    def __init__(self, status: int):
        super().__init__(f"status {status}")
        self.status = status


class FlakyFileSystem(MemoryFileSystem):
    """Content lives in a store of its own class; `faults` are used up one per range request."""

    protocol = ("flaky",)
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the class above, shared by all instances
    pseudo_dirs = [""]  # noqa: RUF012
    reads: list[tuple[str, int, int]] = []  # noqa: RUF012
    calls: list[str] = []  # noqa: RUF012
    faults: list[Callable[[bytes], bytes]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").strip("/")

    def cat_file(self, path, start=None, end=None, **kwargs):
        data = super().cat_file(path, start=start, end=end, **kwargs)
        self.reads.append((path, start or 0, len(data)))
        return self.faults.pop(0)(data) if self.faults else data

    def info(self, path, **kwargs):
        self.calls.append(f"info {path}")
        return super().info(path, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self.calls.append(f"ls {path}")
        return super().ls(path, detail=detail)


def fails(error: BaseException) -> Callable[[bytes], bytes]:
    def fault(data: bytes) -> bytes:
        raise error

    return fault


def short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def fine(data: bytes) -> bytes:
    return data


@contextmanager
def flaky() -> Iterator[type[FlakyFileSystem]]:
    """The file system registered as flaky:// and empty."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    for name in ("reads", "calls", "faults", "store"):
        getattr(FlakyFileSystem, name).clear()
    yield FlakyFileSystem


def upload(directory: Path, url: str) -> None:
    system = FlakyFileSystem()
    for path in directory.iterdir():
        system.pipe_file(f"{url}/{path.name}", path.read_bytes())


class HostFileSystem(MemoryFileSystem):
    """As sftp, ftp, smb and hdfs of fsspec: where to connect stands in the URL, each server has
    files of its own, and a file says who reads it from where."""

    protocol = ("hosts",)
    cachable = False  # as if every thread asked anew

    def __init__(self, host: str = "", port: int = 22, username: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.server = f"{username}@{host}:{port}"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return infer_storage_options(path)["path"]

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = infer_storage_options(path)
        return {name: found[name] for name in ("host", "port", "username") if name in found}

    def cat_file(self, path, start=None, end=None, **kwargs):
        return f"{self.server}{path}".encode()[start:end]

    def info(self, path, **kwargs):
        return {"name": path, "size": len(self.cat_file(path)), "type": "file"}

    def ls(self, path, detail=True, **kwargs):
        return [self.info(f"{path}/{self.server}")]
