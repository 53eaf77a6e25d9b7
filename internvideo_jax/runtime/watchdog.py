"""Notices a step that takes far too long and writes down where every thread stands."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipelines.commands.exit_codes import ExitCode
from internvideo_jax.config import WatchdogConfig

# Steps whose median is the measure, and how many are needed before it means anything.
REMEMBERED, NEEDED = 100, 5


class Watchdog:
    """A thread beside the loop. The first step, which compiles, is not watched.

    Args:
      folder: gets `stacks-PROCESS.txt`.
      left: is told of that file when it was written.
    """

    def __init__(
        self,
        config: WatchdogConfig,
        folder: Path,
        process: int,
        left: Callable[[Path], None] = lambda path: None,
    ):
        self.config, self._left = config, left
        self.path = folder / f"stacks-{process}.txt"
        self._lock = threading.Lock()
        self._seconds: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._step: int | None = None  # last step that ended
        self._since = 0.0  # start of the current step, moved on by pauses
        self._phase, self._phase_since, self._pause = "in the step", 0.0, False
        self._dumped = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.config.factor > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def stepped(self, step: int) -> None:
        """To be called at the end of every step."""
        now = time.monotonic()
        with self._lock:
            if self._step is not None:
                self._seconds.append(now - self._since)
            if self._dumped:
                print(
                    f"watchdog: step {step} went on after {now - self._since:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            self._step, self._since, self._dumped = step, now, False

    @contextlib.contextmanager
    def doing(self, phase: str, *, pause: bool = False) -> Iterator[None]:
        """Names what the loop does; a pause (evaluating, saving) has a limit of its own."""
        before = self._phase, self._phase_since, self._pause
        started = time.monotonic()
        with self._lock:
            self._phase, self._phase_since, self._pause = phase, started, pause
        try:
            yield
        finally:
            with self._lock:
                self._phase, self._phase_since, self._pause = before
                if pause:
                    self._since += time.monotonic() - started

    def limit(self) -> float | None:
        """Seconds that the current step or pause may take; None while nothing can be said."""
        if self._pause:
            return self.config.pause_seconds
        if len(self._seconds) < NEEDED:
            return None
        return max(self.config.seconds, self.config.factor * statistics.median(self._seconds))

    def _run(self) -> None:
        while not self._stop.wait(min(1.0, self.config.seconds / 4)):
            with self._lock:
                limit = self.limit()
                began = self._phase_since if self._pause else self._since
                taken, phase, dumped = time.monotonic() - began, self._phase, self._dumped
                step = (self._step or 0) + 1
                if limit is None or taken <= limit:
                    continue
                self._dumped = True
            if not dumped:
                self._dump(
                    f"watchdog: step {step} has taken {taken:.0f} s, {phase} (limit {limit:.0f} s, "
                    f"median step {self._median():.3g} s)"
                )
            abort = self.config.abort_seconds
            if abort > 0 and taken > limit + abort:
                print(
                    f"error: watchdog: step {step} hangs for {taken:.0f} s, {phase}; the stacks "
                    f"are in {self.path}. Start the same command again to go on from the newest "
                    "checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                sys.stdout.flush()
                os._exit(ExitCode.AGAIN)

    def _median(self) -> float:
        return statistics.median(self._seconds) if self._seconds else 0.0

    def _dump(self, headline: str) -> None:
        print(f"{headline}; stacks follow and are in {self.path}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {headline}", file=file, flush=True)
            faulthandler.dump_traceback(file=file, all_threads=True)
        self._left(self.path)
