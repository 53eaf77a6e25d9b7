"""One writer per directory: an ingest in its output, a training run in its workdir."""

import errno
import fcntl
import os
import socket
import sys
import time
from typing import Any

FILE_NAME = "ingest.lock"
REFUSAL = (
    "{directory}: another ingest is writing there (process {process} on {host}); wait for it, stop "
    "it, or choose another --out"
)

# Workers of a killed process notice within a second or two that nobody listens to them.
_PATIENCE_SECONDS = 15.0
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class DirectoryLock:
    """Holds a directory for one process; the kernel releases it when the last holder is gone.

    Workers inherit the descriptor, so the workers of a killed process keep a new one out until
    they have stopped writing. The lock file stays: removing it would let two processes lock two
    files of the same name. A file system that knows no locks gives a warning and none.

    Args:
      directory: made where it does not exist.
      file_name: of the lock file in it; says who holds it, and since when.
      refusal: message for the second one; {directory}, {process}, {host}, {since} are filled in.

    Raises (on entering):
      RuntimeError: another process holds it.
    """

    def __init__(self, directory: str, file_name: str = FILE_NAME, refusal: str = REFUSAL):
        self._path = os.path.join(directory, file_name)
        self._directory = directory
        self._refusal = refusal
        self._descriptor = -1

    def fileno(self) -> int:
        """The locked descriptor, for the workers to inherit."""
        return self._descriptor

    def __enter__(self) -> "DirectoryLock":
        os.makedirs(self._directory, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire()
        except BaseException:
            os.close(self._descriptor)
            raise
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{socket.gethostname()} {os.getpid()} {since}\n".encode(), 0)
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
                if error.errno in _UNSUPPORTED:
                    print(
                        f"warning: {self._path} cannot be locked on this file system "
                        f"({os.strerror(error.errno)}); nothing keeps a second process out",
                        file=sys.stderr,
                        flush=True,
                    )
                    return
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            host, process, since = self._holder()
            gone = host == socket.gethostname() and not process_lives(process)
            if not gone or time.monotonic() > give_up:
                raise RuntimeError(
                    self._refusal.format(
                        directory=self._directory, process=process, host=host, since=since
                    )
                )
            time.sleep(0.2)

    def _holder(self) -> tuple[str, int, str]:
        text = os.pread(self._descriptor, 1000, 0).decode(errors="replace")
        host, process, since = [*text.split(), "", "", ""][:3]
        return (
            host or "an unknown host",
            int(process) if process.isdigit() else 0,
            since or "an unknown time",
        )


def process_lives(process: int) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
