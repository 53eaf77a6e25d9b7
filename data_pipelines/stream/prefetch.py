"""Reading ahead in threads and worker processes, without a say in what is read."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grain
from absl import flags

from data_pipelines.commands.exit_codes import PassingFault
from data_pipelines.config import ReaderConfig
from data_pipelines.stream.parts.base import Batch

Item = TypeVar("Item")
Row = TypeVar("Row")

CORRUPT_POLICIES = ("raise", "substitute")
MOST_THREADS = 1024  # and worker processes: more than the cores of any machine


def check_reader(reader: ReaderConfig) -> None:
    """ValueError for settings that cannot work."""
    if reader.on_corrupt not in CORRUPT_POLICIES:
        raise ValueError(
            f"unknown reader.on_corrupt {reader.on_corrupt!r}; known: {', '.join(CORRUPT_POLICIES)}"
        )
    if reader.threads < 0 or reader.buffer < 1 or reader.workers < 0:
        raise ValueError(f"reader needs threads >= 0, buffer >= 1, workers >= 0; found {reader}")
    for name in ("threads", "workers"):
        found = getattr(reader, name)
        if found > MOST_THREADS:
            raise ValueError(f"reader.{name} = {found}: expected at most {MOST_THREADS}")


def row_threads(reader: ReaderConfig) -> int:
    """Decoding threads of a process; by default they share the cores, at most 16 a process.

    More threads than cores do not decode faster, they only wait for each other.
    """
    if reader.threads:
        return reader.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(16, (cores or 1) // max(1, reader.workers)))


class RowPool:
    """Threads that fill the rows of batches; only their number travels to worker processes."""

    def __init__(self, threads: int):
        self.threads = threads
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def __getstate__(self) -> int:
        return self.threads

    def __setstate__(self, threads: int) -> None:
        RowPool.__init__(self, threads)

    def map(self, function: Callable[[Item], Row], items: Iterable[Item]) -> list[Row]:
        """Results in the order of the items; raises the error of the first that failed."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="rows")
        return list(self._executor.map(function, items))

    def close(self) -> None:
        """Ends the threads; what waits is dropped."""
        with self._lock:
            if self._executor is not None:
                self._executor.shutdown(wait=False, cancel_futures=True)


def in_order(
    pool: Executor, work: Callable[[Item], Row], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Row]]:
    """(item, work(item)) in the order of the items; the error of an item comes in its place.

    Args:
      ahead: items that are begun before they are asked for; bounds the memory.
    """
    waiting: collections.deque[tuple[Item, Future[Row]]] = collections.deque()
    left = iter(items)
    while True:
        for item in itertools.islice(left, ahead - len(waiting)):
            waiting.append((item, pool.submit(work, item)))
        if not waiting:
            return
        item, future = waiting.popleft()
        yield item, future.result()


class Ahead(grain.DatasetIterator[Batch]):
    """The batches of a grain dataset, made ahead; its state is the number of the next one.

    Args:
      batches: number -> batch.
      pool: the threads that fill their rows, ended with the iterator.
      start: number of the first batch.
    """

    _closed = True  # until there is something to close

    def __init__(
        self,
        batches: grain.MapDataset[Batch],
        reader: ReaderConfig,
        pool: RowPool,
        start: int = 0,
    ):
        self._all, self._reader, self._pool = batches, reader, pool
        self._error: Exception | None = None
        self._next = start
        self._batches = _iterate(batches[start:], reader)
        super().__init__()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          PassingFault: a worker process died.
          Exception: what making the batch raised; from then on every call raises the same.
        """
        if self._error is not None:
            # Grain would go on with what the other threads and workers have: batches would be
            # missing, and nobody would know.
            raise self._error
        try:
            batch = next(self._batches)
        except StopIteration:
            raise
        except Exception as error:
            code = re.search(r"Worker process was terminated .*exit code (-?\d+)", str(error))
            if code is None:
                self._error = error
                raise
            self._error = PassingFault(_obituary(int(code[1]), self._reader))
            raise self._error from error
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """`{"next_index": number}`, whatever the threads, worker processes and hosts."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on with the batch of this number."""
        self._batches.close()
        self._error, self._next = None, int(state["next_index"])
        self._batches = _iterate(self._all[self._next :], self._reader)

    def close(self) -> None:
        """Stops the reading threads and worker processes."""
        if not self._closed:
            super().close()
            self._batches.close()
            self._pool.close()


def _obituary(code: int, reader: ReaderConfig) -> str:
    try:
        how = f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        how = f"ended with exit code {code}"
    less = "use fewer config.data.reader.workers or a smaller config.data.reader.buffer"
    # Batches travel in shared memory; the write that finds no room there ends the process.
    advice = {
        -signal.SIGKILL: f"if the machine was out of memory (`dmesg` tells), {less}",
        -signal.SIGBUS: f"/dev/shm is probably full (`df /dev/shm`): make it larger, or {less}",
    }.get(code, "see what it wrote above")
    return (
        f"a worker process that reads data {how} (config.data.reader.workers = {reader.workers}); "
        f"{advice}. The stream is a function of the step: started again at the next step, it goes "
        "on as if nothing had happened"
    )


def _iterate(
    batches: grain.MapDataset[Batch], reader: ReaderConfig
) -> grain.DatasetIterator[Batch]:
    """An iterator over a dataset whose elements are whole batches, made ahead."""
    # The elements that grain counts are batches here: its default buffer would hold 500 of them.
    # Two at a time, so that the threads of the rows never wait for the end of a batch.
    options = grain.ReadOptions(
        num_threads=min(2, reader.buffer), prefetch_buffer_size=reader.buffer
    )
    stream = batches.to_iter_dataset(options)
    if reader.workers > 0:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=reader.workers),
            worker_init_fn=functools.partial(_end_with_parent, os.getpid()),
        )
    return iter(stream)


def _end_with_parent(parent: int, worker: int, workers: int) -> None:
    """In a worker process: exit when the parent is gone, however it died.

    The parent's number comes from the parent: a worker that asked for it here would never end if
    the parent died while the worker was still starting.
    """
    del worker, workers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
