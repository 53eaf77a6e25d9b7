"""The folder of a run, on a disk or on an object store.

A run on an object store writes into a local folder in its stead. What appears there is copied: the
small files every half minute and before each checkpoint, checkpoints as `remote_steps` says. A
start brings back the small files and the newest checkpoint, so that on whatever machine it is, it
goes on where the last one stood.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import jax
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
_TOKEN = "staging"  # a file by which the processes of a job see that they share the folder


def staging_folder(url: str) -> Path:
    """The local folder in the stead of a URL, the same for all processes on a machine."""
    base = os.environ.get(STAGING)
    if not base:
        base = os.path.join(tempfile.gettempdir(), f"internvideo_jax-{os.getuid()}")
    Path(base).mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(base) / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


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
        self._box = Outbox(workdir, staging, without=(FOLDER, LOCK, _TOKEN))
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
          ValueError: another process trains there; processes on several machines have no folder
            in common.
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
            url = storage.join(self.place, FOLDER)
            steps = RemoteSteps(url, self.local / FOLDER, max(config.keep, 2), self._before)
            if multihost.is_main():
                self._clean()
                self._box.pull(but=self._but)
                steps.prepare()
            self._meet()
            with self._pushing():
                yield steps
            steps.close()

    def _clean(self) -> None:
        """Removes what an earlier run left in the local folder, but for its checkpoints."""
        for path in self.local.iterdir():
            if path.name not in (FOLDER, LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _meet(self) -> None:
        """ValueError on all processes unless all see the local folder of the main one."""
        if jax.process_count() == 1:
            return
        token = secrets.randbits(31)
        if multihost.is_main():
            (self.local / _TOKEN).write_text(str(token))
        token = int(multihost_utils.broadcast_one_to_all(token))
        try:
            alone = (self.local / _TOKEN).read_text() != str(token)
        except FileNotFoundError:
            alone = True
        if multihost.any_process(alone):
            raise ValueError(
                f"--workdir={self.place}: the processes of this job are on several machines and "
                f"write checkpoints together, but {self.local.parent} is not one folder for all of "
                f"them; set {STAGING} to a folder on a file system that all of them have mounted"
            )

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
