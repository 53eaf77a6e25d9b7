"""Checkpoints on an object store: written by Orbax into a local folder, copied, then committed.

`URL/checkpoints/N` holds the files of step N as they are on a disk, and `complete.json`, which is
written last and names them with their sizes. A folder without it is no checkpoint: a process
that was killed, or a removal that was not finished, left it, and the next start removes it. To
remove a step begins with that file.

Of several processes each has a local folder of its own, which no other need see. It copies what it
wrote, then a note of it, `parts/TOKEN-PROCESS.json`. The main process reads the indices of all
parts there, merges them, copies the result, removes the notes and completes the step. To go on,
each process reads the chunks of the arrays that it needs.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from data_pipelines.records import storage, trees
from internvideo_jax.checkpoint import chunks, own_disks
from internvideo_jax.types import Tree
from internvideo_jax.weights import remote

STATE = "state"  # the folder of the arrays of a step
PARTS = "parts"
LOOK_SECONDS = 1.0  # between two looks for the notes of others


class RemoteSteps:
    """The folder of checkpoints of a run on an object store, beside the local one.

    Only the main process, number 0, completes and removes steps.

    Args:
      url: of the folder.
      local: the folder that Orbax writes into.
      keep: complete steps that stay.
      before: called before a step is made complete; may raise to prevent it.
      process, processes: number of this one, and of all.
    """

    def __init__(
        self,
        url: str,
        local: Path,
        keep: int,
        before: Callable[[], None],
        process: int = 0,
        processes: int = 1,
    ):
        self.url, self._local, self._keep, self._before = url, local, keep, before
        self._process, self._processes = process, processes
        self._token = 0
        self._there: set[str] = set()  # frozen parameters that are complete there
        self._pool = ThreadPoolExecutor(1, "checkpoint-upload")
        self._pending: Future[None] | None = None
        self._stop = threading.Event()

    @property
    def divided(self) -> bool:
        """Whether each process has a part of the files only."""
        return self._processes > 1

    def steps(self) -> list[int]:
        """Numbers of the complete steps there."""
        return remote.committed_steps(self.url)

    def prepare(self) -> int:
        """Removes what is not complete there or too old; the newest step, 0 where there is none.

        For the main process, before the others write.
        """
        steps = self.steps()
        self._remove_incomplete(steps)
        self._remove_old(steps)
        return steps[-1] if steps else 0

    def bring(self, step: int, token: int) -> None:
        """Brings the newest step into the local folder, and leaves nothing else there.

        What a single process has of it already is taken. Of several each brings all but the
        arrays, as these are large (`bring_arrays`).

        Args:
          step: as the main process found it; 0: none.
          token: of this start, the same on all processes.
        """
        self._token, self._there = token, set(self._frozen() if step else ())
        wanted = {str(step), *self._there} if step else set()
        for path in self._local.iterdir() if self._local.is_dir() else ():
            if self.divided or path.name not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._local.mkdir(parents=True, exist_ok=True)
        for name in sorted(wanted):
            there, here = storage.join(self.url, name), self._local / name
            if self.divided:
                self._bring_index(there, here, STATE if name == str(step) else "")
            else:
                remote.copy_committed(there, here)

    def _bring_index(self, there: str, here: Path, arrays: str) -> None:
        """All files but those with arrays, and where in those which array is."""
        small = [
            name
            for name in remote.committed_files(there)
            if not {"d", chunks.MANIFEST} & {*name.split("/")}
        ]
        trees.download_tree(there, here, small)
        chunks.bring_index(storage.join(there, arrays) if arrays else there, here / arrays)

    def bring_arrays(self, name: str, targets: Tree) -> None:
        """Brings what this process needs of the arrays of a folder that `bring` brought.

        Args:
          name: `12/state` or `frozen-...`.
          targets: shapes with shardings, by the paths under which they were saved.
        """
        if self.divided:
            chunks.bring_arrays(storage.join(self.url, name), self._local / name, targets)

    def _frozen(self) -> list[str]:
        return [name for name in _listed(self.url) if name.startswith(remote.APART)]

    def _remove_incomplete(self, steps: list[int]) -> None:
        for name in _listed(self.url):
            folder = storage.join(self.url, name)
            frozen = name.startswith(remote.APART)
            if (name.isdigit() and int(name) not in steps) or (
                frozen and not storage.exists(storage.join(folder, remote.COMMITTED))
            ):
                trees.remove_tree(folder)

    def clear(self, name: str) -> None:
        """Says that a folder is written anew; the main process removes it there.

        No process may write before the main one is back.
        """
        self._there.discard(name)
        if self._process == 0:
            self._remove(name)

    def start(self, step: int, written: Callable[[], None]) -> None:
        """Copies a step in the background, once `written` returns, and removes old ones then."""
        self._pending = self._pool.submit(self._store, step, written)

    def wait(self) -> None:
        """Blocks until what was started is there, on the main process complete.

        Raises why it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _store(self, step: int, written: Callable[[], None]) -> None:
        written()
        for path in sorted(self._local.glob(f"{remote.APART}*")):
            if path.name not in self._there:
                self._put(path.name, "")
                self._there.add(path.name)
        self._put(str(step), STATE)
        if self._process == 0:
            self._remove_old(self.steps())

    def _put(self, name: str, arrays: str) -> None:
        """Copies a local folder; on the main process makes it complete there.

        Args:
          arrays: the folder in it that holds arrays.
        """
        here, there = self._local / name, storage.join(self.url, name)
        sizes = self._copy(here, there, trees.files_below(here))
        if self._process:
            note = storage.join(there, f"{PARTS}/{self._token}-{self._process}.json")
            storage.write_atomic(note, json.dumps(sizes).encode())
            return
        if self.divided:
            sizes |= self._others(there)
            self._merge(here, there, arrays, sizes)
            sizes |= self._copy(here, there, set(trees.files_below(here)) - sizes.keys())
            trees.remove_tree(storage.join(there, PARTS))
        self._before()
        text = remote.commit(there, sizes)
        if not self.divided:
            (here / remote.COMMITTED).write_text(text, encoding="utf-8")

    def _copy(self, here: Path, there: str, names: Collection[str]) -> dict[str, int]:
        """Copies files that are of this process; their sizes."""
        sizes = {name: (here / name).stat().st_size for name in names if self._is_mine(name)}
        trees.upload_tree(here, there, sizes)
        return sizes

    def _is_mine(self, name: str) -> bool:
        """Whether this process is the one to copy a file: what each has, the main one does."""
        _, mark, number = name.partition("process_")
        return int(number.partition("/")[0]) == self._process if mark else self._process == 0

    def _others(self, there: str) -> dict[str, int]:
        """Waits until all others have stored their parts; the sizes of their files."""
        folder = storage.join(there, PARTS)
        wanted = {f"{self._token}-{number}.json" for number in range(1, self._processes)}
        while not wanted <= set(_listed(folder)):
            if self._stop.wait(LOOK_SECONDS):
                raise RuntimeError("this process ended before all others had stored their parts")
        sizes: dict[str, int] = {}
        for name in sorted(wanted):
            sizes |= json.loads(storage.read_bytes(storage.join(folder, name)))
        return sizes

    def _merge(self, here: Path, there: str, arrays: str, sizes: Collection[str]) -> None:
        """Makes one checkpoint of the parts of all processes, of which `here` has one."""
        start = f"{arrays}/" if arrays else ""
        described = [name for name in sizes if name.startswith(f"{start}{own_disks.DESCRIBED}/")]
        trees.download_tree(there, here, [name for name in described if not self._is_mine(name)])

        def bring(number: int) -> None:
            part = f"{start}{own_disks.PART}{number}"
            if f"{part}/{chunks.MANIFEST}" in sizes:  # else others have all that it has
                chunks.bring_index(storage.join(there, part), here / part)

        with ThreadPoolExecutor(trees.THREADS) as pool:
            list(pool.map(bring, range(1, self._processes)))
        own_disks.merge(here / arrays)

    def _remove_old(self, steps: Sequence[int]) -> None:
        for step in steps[: -self._keep]:
            self._remove(str(step))

    def _remove(self, name: str) -> None:
        folder = storage.join(self.url, name)
        storage.remove(storage.join(folder, remote.COMMITTED))
        trees.remove_tree(folder)

    def set_aside(self, step: int, name: str) -> str:
        """Takes a step out of the run; returns the URL that it has then.

        Args:
          name: in the stead of its number.
        """
        there = storage.join(self.url, name)
        trees.remove_tree(there)
        trees.copy_tree(storage.join(self.url, str(step)), there)
        self._remove(str(step))
        return there

    def stop(self) -> None:
        """Ends what waits for other processes; for a process that ends before the run does."""
        self._stop.set()

    def close(self) -> None:
        """Waits until what was started is done."""
        self._pool.shutdown()


def _listed(folder: str) -> list[str]:
    try:
        return storage.listdir(folder)
    except FileNotFoundError:
        return []
