"""One ingest per output directory."""

import errno
import fcntl
import os
import socket
import time
from typing import Any

FILE_NAME = "ingest.lock"

# Workers of a killed ingest notice within a second or two that nobody listens to them.
_PATIENCE_SECONDS = 15.0


class DirectoryLock:
    """Holds a directory for one ingest; the kernel releases it when the last holder is gone.

    Workers inherit the descriptor, so the workers of a killed ingest keep a new one out until
    they have stopped writing. The lock file stays: removing it would let two runs lock two files
    of the same name.

    Raises (on entering):
      RuntimeError: another ingest is running there.
    """

    def __init__(self, directory: str):
        self._path = os.path.join(directory, FILE_NAME)
        self._directory = directory
        self._descriptor = -1

    def fileno(self) -> int:
        """The locked descriptor, for the workers to inherit."""
        return self._descriptor

    def __enter__(self) -> "DirectoryLock":
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire()
        except BaseException:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *error: Any) -> None:
        os.close(self._descriptor)

    def _acquire(self) -> None:
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            host, process = self._holder()
            gone = host == socket.gethostname() and not _alive(process)
            if not gone or time.monotonic() > give_up:
                raise RuntimeError(
                    f"{self._directory}: another ingest is writing there (process {process} on "
                    f"{host}); wait for it, stop it, or choose another --out"
                )
            time.sleep(0.2)

    def _holder(self) -> tuple[str, int]:
        host, _, process = (
            os.pread(self._descriptor, 1000, 0).decode(errors="replace").partition(" ")
        )
        return host or "an unknown host", int(process) if process.strip().isdigit() else 0


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
