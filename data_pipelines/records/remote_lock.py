"""One writer per remote directory, by a file that its holder keeps renewing.

Object stores have no locks, and a process that was killed leaves its file behind. So who finds one
watches it: one that changes has a holder, one that does not is taken over. Of two that start in the
same half second one may be missed; the holder who finds another's name in the file says so before
the next thing that it would complete (`require`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from typing import Any

from data_pipelines.commands.lock import FILE_NAME, REFUSAL, DirectoryLock, process_lives
from data_pipelines.records import storage

RENEW_SECONDS = 15.0
PATIENCE_SECONDS = 60.0  # without a renewal, after which a holder counts as gone
SETTLE_SECONDS = 0.5


class RemoteLock:
    """Holds a remote directory for one process, as `DirectoryLock` does a local one.

    Args:
      directory: URL.
      file_name: of the file in it that says who holds it.
      refusal: message for the second one; {directory}, {process}, {host}, {since} are filled in.

    Raises (on entering):
      RuntimeError: another process holds it.
      StorageError, OSError: the storage fails.
    """

    def __init__(self, directory: str, file_name: str = FILE_NAME, refusal: str = REFUSAL):
        self._path = storage.join(directory, file_name)
        self._directory, self._refusal = directory, refusal
        self._mine: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self._count = 0
        self._lost: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def __enter__(self) -> RemoteLock:
        found = self._found()
        if found is not None and not self._gone(found):
            print(
                f"note: {self._path} is there (process {found['process']} on {found['host']}); "
                f"watching for {PATIENCE_SECONDS:.0f} s whether its holder is alive",
                file=sys.stderr,
                flush=True,
            )
            self._watch(found)
        self._write()
        time.sleep(SETTLE_SECONDS)
        self._check()
        self.require()
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(storage.StorageError, OSError):  # it counts as gone in a while
                storage.remove(self._path)

    def require(self) -> None:
        """RuntimeError where another process has taken the directory over meanwhile."""
        if self._lost is not None:
            self._refuse(self._lost)

    def _refuse(self, holder: dict[str, Any]) -> None:
        names = {name: holder[name] for name in ("process", "host", "since")}
        raise RuntimeError(self._refusal.format(directory=self._directory, **names))

    def _watch(self, found: dict[str, Any]) -> None:
        """Returns once the holder counts as gone."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            time.sleep(min(PATIENCE_SECONDS / 20, 2.0))
            now = self._found()
            if now is None:
                return
            if now != found:
                self._refuse(now)

    def _gone(self, holder: dict[str, Any]) -> bool:
        return holder["host"] == socket.gethostname() and not process_lives(holder["process"])

    def _found(self) -> dict[str, Any] | None:
        """What the file says; None where there is none, or none of ours."""
        try:
            found = json.loads(storage.read_bytes(self._path))
            return {**found, "process": int(found["process"]), "host": str(found["host"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _write(self) -> None:
        self._count += 1
        content = {**self._mine, "count": self._count}
        storage.write_atomic(self._path, json.dumps(content).encode())

    def _check(self) -> None:
        found = self._found()
        if found is not None and found.get("token") != self._mine["token"]:
            self._lost = found

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            with contextlib.suppress(storage.StorageError, OSError):  # tried again in a while
                self._check()
                if self._lost is not None:
                    return
                self._write()


def held(
    directory: str, file_name: str = FILE_NAME, refusal: str = REFUSAL
) -> DirectoryLock | RemoteLock:
    """The lock of a directory, local or remote."""
    kind = RemoteLock if storage.is_remote(directory) else DirectoryLock
    return kind(storage.local(directory), file_name, refusal)
