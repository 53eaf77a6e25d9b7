"""Worker processes for jobs that run untrusted decoders.

A decoder can crash, hang or be killed, so each worker is a separate program whose death costs one
task and is reported with the item it was at. Workers are started by command line instead of
`multiprocessing`, which would import the caller's main module (and with it jax) in each.

A job is a function `job(task, progress) -> result` named `module:function`. A task is a
dataclass with a field `crashed`, a mapping from item number to what happened: an item that
killed its worker is entered there and the task is tried again without it.
"""

import contextlib
import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol

# A worker is replaced after so many tasks, which bounds what a leaking codec can collect.
_TASKS_PER_WORKER = 16
_REPORT_SECONDS = 0.5
_WAIT_SECONDS = 1.0
# The pool looks at its workers at least every _WAIT_SECONDS, unless it was stopped itself.
_PAUSE_SECONDS = 5.0
_WORKER_MODULE = "data_pipelines.ingest.worker"

# What a faulty decoder dies of. SIGKILL is not among them: that is the kernel short of memory,
# or a person, and trying again at once would not help either.
_CRASHES = frozenset(
    (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)
)
_STOPS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


class JobProgress(Protocol):
    """What a job tells while it works."""

    def item(self, number: int) -> None:
        """The job turns to an item; the previous ones are finished."""

    def tick(self, frames: int = 0) -> None:
        """The job is alive and has made some more frames."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one task.

    Attributes:
      number: position of the task in the list given.
      result: what the job returned; None when it failed.
      failure: why there is no result.
      died: the worker process ended, as opposed to the job reporting a problem.
      item: what it was at when it died, None before the first item.
    """

    number: int
    result: Any = None
    failure: str = ""
    died: bool = False
    item: int | None = None


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    number: int | None = None
    item: int | None = None
    tasks: int = 0
    heard: float = 0.0


# number of the task, items finished in this attempt, frames made in this attempt
OnProgress = Callable[[int, int, int], None]


def run_tasks(
    job: str,
    tasks: Sequence[Any],
    workers: int,
    *,
    on_progress: OnProgress = lambda number, items, frames: None,
    stall_seconds: float = 300.0,
    keep_open: Sequence[int] = (),
) -> Generator[Outcome, None, None]:
    """Run all tasks and yield their outcomes as they end, in no particular order.

    Closing the generator, or an exception in its consumer, kills the workers.

    Args:
      job: `module:function`.
      tasks: picklable dataclasses with a `crashed` mapping.
      workers: processes; 0 runs the tasks in this process, without protection.
      on_progress: called about twice per second and task.
      stall_seconds: a worker that reports nothing for so long is killed.
      keep_open: descriptors the workers inherit, such as a lock they share.
    """
    if workers == 0:
        yield from _run_here(job, tasks, on_progress)
        return
    pool = _Pool(job, tasks, on_progress, stall_seconds, keep_open)
    try:
        yield from pool.run(min(workers, len(tasks)))
    finally:
        pool.kill()


def resolve(job: str) -> Callable[[Any, JobProgress], Any]:
    """The function a job name stands for."""
    module, function = job.split(":")
    return getattr(importlib.import_module(module), function)


def _run_here(job: str, tasks: Sequence[Any], on_progress: OnProgress) -> Iterator[Outcome]:
    function = resolve(job)
    for number, task in enumerate(tasks):

        def report(items: int, frames: int, number: int = number) -> None:
            on_progress(number, items, frames)

        try:
            result = function(task, Throttled(report))
        except (OSError, ValueError, RuntimeError) as error:
            yield Outcome(number, failure=str(error))
        else:
            yield Outcome(number, result)


class Throttled:
    """Progress that calls `report(items, frames)` at most twice a second."""

    def __init__(self, report: Callable[[int, int], None]):
        self._report = report
        self._items = self._frames = 0
        self._last = time.monotonic()

    def item(self, number: int) -> None:
        """So many items are done."""
        self._items = number
        self.tick()

    def tick(self, frames: int = 0) -> None:
        """So many more frames are done."""
        self._frames += frames
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS:
            self._last = now
            self._report(self._items, self._frames)


class _Pool:
    def __init__(
        self,
        job: str,
        tasks: Sequence[Any],
        on_progress: OnProgress,
        stall_seconds: float,
        keep_open: Sequence[int],
    ):
        self._job = job
        self._tasks = list(tasks)
        self._on_progress = on_progress
        self._stall_seconds = stall_seconds
        self._keep_open = tuple(keep_open)
        self._queue = deque(range(len(self._tasks)))
        self._workers: list[_Worker] = []
        self._looked = time.monotonic()

    def run(self, count: int) -> Iterator[Outcome]:
        while self._queue or any(worker.number is not None for worker in self._workers):
            while self._queue and len(self._workers) < count:
                self._workers.append(self._start())
            for worker in list(self._workers):
                if worker.number is None and self._queue:
                    self._give(worker)
            busy = {w.connection: w for w in self._workers if w.number is not None}
            for connection in wait(list(busy), timeout=_WAIT_SECONDS):
                yield from self._listen(busy[connection])  # type: ignore[index]
            self._forgive_pause()
            for worker in busy.values():
                silence = time.monotonic() - worker.heard
                if worker.number is not None and silence > self._stall_seconds:
                    yield from self._lost(worker, stalled=True)

    def _forgive_pause(self) -> None:
        """After ctrl-z, everybody was silent; that is not a stall."""
        now = time.monotonic()
        if now - self._looked > _PAUSE_SECONDS:
            for worker in self._workers:
                worker.heard = now
        self._looked = now

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        package_root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        path = os.environ.get("PYTHONPATH")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package_root, *([path] if path else [])]),
            "OMP_NUM_THREADS": "1",
        }
        with theirs, _interrupts_blocked():
            process = subprocess.Popen(
                [sys.executable, "-m", _WORKER_MODULE, str(theirs.fileno()), self._job],
                pass_fds=(theirs.fileno(), *self._keep_open),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        return _Worker(process, ours, heard=time.monotonic())

    def _give(self, worker: _Worker) -> None:
        worker.number = self._queue.popleft()
        worker.item = None
        worker.tasks += 1
        worker.heard = time.monotonic()
        # A dead worker cannot be told anything; the next wait() reports its connection closed.
        with contextlib.suppress(OSError):
            worker.connection.send(self._tasks[worker.number])

    def _listen(self, worker: _Worker) -> Iterator[Outcome]:
        number = worker.number
        if number is None:
            return
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            yield from self._lost(worker)
            return
        worker.heard = time.monotonic()
        if message[0] == "item":
            worker.item = message[1]
        elif message[0] == "progress":
            self._on_progress(number, message[1], message[2])
        else:
            worker.number = None
            if worker.tasks >= _TASKS_PER_WORKER:
                self._workers.remove(worker)
                worker.process.kill()  # it has delivered; waiting for its own end could hang
                worker.process.wait()
                worker.connection.close()
            if message[0] == "done":
                yield Outcome(number, message[1])
            else:
                yield Outcome(number, failure=message[1])

    def _lost(self, worker: _Worker, stalled: bool = False) -> Iterator[Outcome]:
        """A worker ended, or is ended because it stalled: retry without the item, or give up."""
        number, item = worker.number, worker.item
        worker.number = None
        self._workers.remove(worker)
        if stalled:
            worker.process.kill()
        code = worker.process.wait()
        worker.connection.close()
        how = f"made no progress for {self._stall_seconds:g} s" if stalled else _describe(code)
        if number is None:
            return
        task = self._tasks[number]
        faulty = stalled or (code < 0 and -code in _CRASHES)
        if faulty and item is not None and item not in task.crashed:
            crashed = {**task.crashed, item: f"the decoder {how}"}
            self._tasks[number] = dataclasses.replace(task, crashed=crashed)
            self._queue.appendleft(number)
            return
        if -code in _STOPS:
            item = None  # stopped on purpose, which is not the fault of what it was doing
        yield Outcome(number, failure=f"the worker process {how}", died=True, item=item)

    def kill(self) -> None:
        """End all workers at once; what they were writing stays unfinished."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.connection.close()
        self._workers.clear()


def _describe(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL; usually the kernel ran out of memory: use fewer --workers)"
    if -code in _STOPS:
        return f"was stopped ({signal.Signals(-code).name})"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"ended with exit code {code}; see its message above"


class _interrupts_blocked:
    """Start workers with SIGINT blocked, so that ctrl-c reaches only the process that knows how
    to stop; nothing is lost here, the signal is delivered when the block ends."""

    def __enter__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def __exit__(self, *error: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
