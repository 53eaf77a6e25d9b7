"""The folder of a run, on a disk or on an object store.

A run on an object store writes into a local folder in its stead, each process into one of its own.
What appears there is copied: the small files, which the main process writes, every half minute and
before each checkpoint, checkpoints as `remote_steps` says. A start brings back the small files and
the newest checkpoint, so that on whatever machines it is, it goes on where the last one stood.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.commands.lock import DirectoryLock
from data_pipelines.records import storage
from data_pipelines.records.remote_lock import RemoteLock
from data_pipelines.records.trees import Outbox
from internvideo_jax.checkpoint.remote_steps import RemoteSteps
from internvideo_jax.checkpoint.steps import FOLDER
from internvideo_jax.config import CheckpointConfig
from internvideo_jax.parallel import multihost

STAGING = "IVJ_STAGING"
LOCK = "train.lock"
IN_USE = (
    "{directory} is in use by process {process} on {host} since {since}; wait for it, stop it, or "
    "give another --workdir"
)
PUSH_SECONDS = 30.0


def staging_folder(url: str) -> Path:
    """The local folder of this process in the stead of a URL.

    Raises:
      ValueError: it cannot be made or written to.
    """
    base = os.environ.get(STAGING)
    if not base:
        base = os.path.join(tempfile.gettempdir(), f"internvideo_jax-{os.getuid()}")
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder = Path(base) / (name if multihost.is_main() else f"{name}-{jax.process_index()}")
    try:
        Path(base).mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{base} on {socket.gethostname()} cannot be written ({error.strerror}); each process "
            f"of a run on an object store writes into a local folder first: set {STAGING} to "
            "another one there"
        ) from error
    return folder


class RunFolder:
    """Where a run writes.

    Args:
      workdir: local path or URL.
      but: names in it that a start does not bring back.

    Attributes:
      local: the folder that programs write into.
      place: the folder as the user gave it, without a slash at its end where it is a URL.
      remote: whether it is on an object store.
    """

    def __init__(self, workdir: str | os.PathLike[str], but: Collection[str] = ()):
        self._but = but
        self.remote = storage.is_remote(workdir)
        staging = staging_folder(os.fspath(workdir)) if self.remote else None
        self._box = Outbox(workdir, staging, without=(FOLDER, LOCK))
        self.local, self.place = self._box.local, self._box.place
        self._lock: RemoteLock | None = None
        self._failed = False

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return self.place.rpartition("/")[2] if self.remote else self.local.name

    def shown(self, path: Path) -> str:
        """A path below `local` as the user knows it."""
        if not self.remote:
            return str(path)
        return storage.join(self.place, path.relative_to(self.local).as_posix())

    @contextlib.contextmanager
    def held(self, config: CheckpointConfig) -> Iterator[RemoteSteps | None]:
        """Keeps others out; yields the checkpoints where they are on an object store.

        The main process holds it for the whole job.

        Raises:
          ValueError: another process trains there.
        """
        with contextlib.ExitStack() as stack:
            if multihost.is_main():
                try:
                    named = self.place.replace("{", "{{").replace("}", "}}")
                    refusal = IN_USE.replace("{directory}", named)
                    stack.enter_context(DirectoryLock(str(self.local), LOCK, refusal))
                    if self.remote:
                        self._lock = RemoteLock(self.place, LOCK, refusal)
                        stack.enter_context(self._lock)
                except RuntimeError as error:
                    if isinstance(error, storage.StorageError):
                        raise
                    raise ValueError(str(error)) from None
            if not self.remote:
                yield None
                return
            steps = RemoteSteps(
                storage.join(self.place, FOLDER),
                self.local / FOLDER,
                max(config.keep, 2),
                self._before,
                jax.process_index(),
                jax.process_count(),
            )
            self._begin(steps)
            try:
                with self._pushing():
                    yield steps
            except BaseException:
                steps.stop()
                raise
            steps.close()

    def _begin(self, steps: RemoteSteps) -> None:
        """Makes the local folders of all processes what the run is."""
        newest = 0
        if multihost.is_main():
            self._clean()
            self._box.pull(but=self._but)
            newest = steps.prepare()
        # The others touch nothing before the main process has the lock.
        agreed = newest, secrets.randbits(31)
        if jax.process_count() > 1:
            agreed = multihost_utils.broadcast_one_to_all(np.array(agreed, np.int32)).tolist()
        if not multihost.is_main():
            self._clean()
        steps.bring(*agreed)

    def _clean(self) -> None:
        """Removes what an earlier run left in the local folder, but for its checkpoints."""
        for path in self.local.iterdir():
            if path.name not in (FOLDER, LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _before(self) -> None:
        """What must be there before a checkpoint is: its metrics, and nobody else's run."""
        if self._lock is not None:
            self._lock.require()
        self._box.push()

    def push(self) -> None:
        """Copies what is new; StorageError or OSError where that fails."""
        if multihost.is_main():
            self._box.push()

    def push_file(self, path: Path) -> None:
        """Copies one file, from any process; where that fails, says so."""
        if self.remote:
            try:
                self._box.push_one(path.relative_to(self.local).as_posix())
            except (storage.StorageError, OSError) as error:
                self._warn(error)

    @contextlib.contextmanager
    def _pushing(self) -> Iterator[None]:
        """Copies what is new every now and then, and at the end."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(PUSH_SECONDS):
                self._push_quietly()

        thread = threading.Thread(target=run, name="push", daemon=True)
        if multihost.is_main():
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if multihost.is_main():
                thread.join()
                self._push_quietly()

    def _push_quietly(self) -> None:
        try:
            self.push()
            self._failed = False
        except (storage.StorageError, OSError) as error:
            if not self._failed:  # once for each time that it fails
                self._warn(error)
            self._failed = True

    def _warn(self, error: Exception) -> None:
        text = f"warning: {self.place} does not have the newest files yet ({error})"
        print(text, file=sys.stderr, flush=True)
