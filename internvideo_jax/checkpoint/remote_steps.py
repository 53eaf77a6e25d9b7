"""Checkpoints on an object store: written by Orbax into a local folder, copied, then committed.

`URL/checkpoints/N` holds the files of step N as they are on a disk, and `complete.json`, which is
written last and names them with their sizes. A folder without it is no checkpoint: a process
that was killed, or a removal that was not finished, left it, and the next start removes it. To
remove a step begins with that file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from data_pipelines.records import storage, trees
from internvideo_jax.weights import remote


class RemoteSteps:
    """The folder of checkpoints of a run on an object store, beside the local one.

    Only the main process copies and removes.

    Args:
      url: of the folder.
      local: the folder that Orbax writes into.
      keep: complete steps that stay.
      before: called before a step is made complete; may raise to prevent it.
    """

    def __init__(self, url: str, local: Path, keep: int, before: Callable[[], None]):
        self.url, self._local, self._keep, self._before = url, local, keep, before
        self._pool = ThreadPoolExecutor(1, "checkpoint-upload")
        self._pending: Future[None] | None = None

    def steps(self) -> list[int]:
        """Numbers of the complete steps there."""
        return remote.committed_steps(self.url)

    def prepare(self) -> None:
        """Removes what is not complete there or too old, and brings the newest step here.

        Nothing else is left in the local folder: what it has of that step already is taken.
        """
        steps = self.steps()
        self._remove_incomplete(steps)
        self._remove_old(steps)
        self._local.mkdir(parents=True, exist_ok=True)
        apart = self._frozen()
        wanted = {str(steps[-1]), *apart} if steps else set()
        for path in self._local.iterdir():
            if path.name not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in sorted(wanted):
            remote.copy_committed(storage.join(self.url, name), self._local / name)

    def _names(self) -> list[str]:
        try:
            return storage.listdir(self.url)
        except FileNotFoundError:
            return []

    def _frozen(self) -> list[str]:
        return [name for name in self._names() if name.startswith(remote.APART)]

    def _remove_incomplete(self, steps: list[int]) -> None:
        for name in self._names():
            folder = storage.join(self.url, name)
            frozen = name.startswith(remote.APART)
            if (name.isdigit() and int(name) not in steps) or (
                frozen and not storage.exists(storage.join(folder, remote.COMMITTED))
            ):
                trees.remove_tree(folder)

    def start(self, step: int, written: Callable[[], None]) -> None:
        """Copies a step in the background, once `written` returns, and removes old ones then."""
        self._pending = self._pool.submit(self._store, step, written)

    def wait(self) -> None:
        """Blocks until what was started is complete there; raises why it could not be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _store(self, step: int, written: Callable[[], None]) -> None:
        written()
        for path in sorted(self._local.glob(f"{remote.APART}*")):
            if not (path / remote.COMMITTED).exists():
                self._put(path.name)
        self._put(str(step))
        self._remove_old(self.steps())

    def _put(self, name: str) -> None:
        """Copies a local folder, and makes it complete there."""
        here, there = self._local / name, storage.join(self.url, name)
        trees.remove_tree(there)
        trees.upload_tree(here, there)
        self._before()
        files = [path for path in here.rglob("*") if path.is_file()]
        sizes = {path.relative_to(here).as_posix(): path.stat().st_size for path in files}
        (here / remote.COMMITTED).write_text(remote.commit(there, sizes), encoding="utf-8")

    def _remove_old(self, steps: Sequence[int]) -> None:
        for step in steps[: -self._keep]:
            self._remove(step)

    def _remove(self, step: int) -> None:
        folder = storage.join(self.url, str(step))
        storage.remove(storage.join(folder, remote.COMMITTED))
        trees.remove_tree(folder)

    def set_aside(self, step: int, aside: Path) -> str:
        """Takes a step out of the run; returns the URL that it has then.

        Args:
          aside: its local folder.
        """
        there = storage.join(self.url, aside.name)
        trees.upload_tree(aside, there)
        self._remove(step)
        return there

    def close(self) -> None:
        self._pool.shutdown()
