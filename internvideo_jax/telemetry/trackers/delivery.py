"""How rows get to trackers: through a bounded queue to a thread for each, which may fail.

A tracker that cannot begin, fails or does not keep up is named once, in one line, and what it did
not get is counted in one more at the end. `metrics.jsonl` has all of it, whatever a tracker has.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.records.storage import write_atomic
from internvideo_jax import registry
from internvideo_jax.parallel.multihost import is_main
from internvideo_jax.telemetry.trackers.base import TrackedRun, Tracker

IDS = "trackers.json"
WAITING = 1000  # calls that a tracker may be behind; later ones are dropped and counted
IN_A_ROW = 10  # failed calls in a row after which a tracker is left alone
END_SECONDS = 30.0  # for all trackers together, at the end of a run
RESTARTED = "restart/after_step"  # logged where steps come a second time: the last step before


def tracker_class(name: str) -> type[Tracker]:
    """The class behind an entry of config.log.trackers: a registered name, or `module:Class`.

    Raises:
      ValueError: an unknown name, or a module or class that is not there.
    """
    if "," in name:
        several = ",".join(f"'{one.strip()}'" for one in name.split(","))
        raise ValueError(f"config.log.trackers = {name!r}: several are written ({several})")
    if ":" not in name:
        return registry.resolve("tracker", name)
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    try:
        sys.path.insert(0, here)  # as for a script there; `ivj` has it not
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"config.log.trackers: {name!r} cannot be imported ({error}); expected MODULE:CLASS on "
            "Python's path or in this folder"
        ) from error
    finally:
        sys.path.remove(here)
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise ValueError(
            f"config.log.trackers: {name!r} is no subclass of {Tracker.__module__}.Tracker"
        )
    return found


def check_trackers(names: Sequence[str]) -> None:
    """ValueError for a tracker that is unknown, is named twice or lacks its library here.

    The libraries are looked for on the main process only, which alone uses them.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"config.log.trackers names {name!r} twice")
        needs = tracker_class(name).needs
        if needs and is_main() and importlib.util.find_spec(needs[0]) is None:
            raise ValueError(
                f"config.log.trackers = {name!r} needs {needs[0]}: "
                f"pip install 'internvideo-jax[{needs[1]}]'"
            )


class Trackers:
    """The trackers of one start of a run; none of the calls waits, raises or reads a device.

    Args:
      names: those of config.log.trackers; nothing is done on other than the main process.
      run: what they are told of the run.
    """

    def __init__(self, names: Sequence[str] = (), run: TrackedRun | None = None):
        check_trackers(names)
        self._couriers: list[_Courier] = []
        if run is not None and is_main():
            self._couriers = [_Courier(name, tracker_class(name)(), run) for name in names]
            if run.seen > run.start:
                self.log(run.start, {RESTARTED: run.seen})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a log point."""
        self._put("log", step, dict(values))

    def picture(self, step: int, name: str, path: Path) -> None:
        """A drawing of an evaluator."""
        self._put("picture", step, name, path)

    def file(self, path: Path) -> None:
        """A file to keep with the run."""
        self._put("file", path)

    def end(self, status: str, seconds: float = END_SECONDS) -> None:
        """Lets them finish, for so many seconds in all; ctrl-c goes on without them."""
        for courier in self._couriers:
            courier.put("end", (status,))
        deadline = time.monotonic() + seconds
        try:
            for courier in self._couriers:
                courier.join(max(0.0, min(3.0, deadline - time.monotonic())))
                if courier.is_alive() and deadline > time.monotonic():
                    left = deadline - time.monotonic()
                    print(
                        f"waiting for {courier.name}, at most {left:.0f} s (ctrl-c: not at all)",
                        file=sys.stderr,
                        flush=True,
                    )
                    courier.join(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            warn("not waiting for the trackers any longer")
        for courier in self._couriers:
            courier.leave()
        self._couriers = []

    def _put(self, method: str, *arguments: object) -> None:
        for courier in self._couriers:
            courier.put(method, arguments)


class _Courier(threading.Thread):
    """Calls one tracker, in the order in which it was asked to."""

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun):
        # A daemon: one that hangs does not keep the process.
        super().__init__(name=f"tracker {name}", daemon=True)
        self._tracker = tracker
        self._calls: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(WAITING)
        self._off = False
        self._warned = False
        self._asked = self._done = 0
        self._calls.put(("begin", (run,)))
        self.start()

    def put(self, method: str, arguments: tuple[Any, ...]) -> None:
        """Asks for a call; never waits."""
        if method != "end":
            self._asked += 1
        if self._off:
            return
        try:
            self._calls.put_nowait((method, arguments))
        except queue.Full:
            if method == "end":  # it is too far behind to be told in order
                self._off = True
            self._warn(f"does not keep up: {WAITING} calls behind, further ones are dropped")

    def run(self) -> None:
        failed, method = 0, ""
        while method != "end" and not self._off:
            method, arguments = self._calls.get()
            try:
                getattr(self._tracker, method)(*arguments)
                failed, self._done = 0, self._done + (method in ("log", "picture", "file"))
            except (Exception, SystemExit) as error:  # noqa: BLE001  (a service may raise anything)
                failed += 1
                text = str(error).strip() or type(error).__name__
                self._warn(text.splitlines()[0])
                self._off = method == "begin" or failed >= IN_A_ROW

    def leave(self) -> None:
        """Waits no longer, and says what did not arrive."""
        if self.is_alive():
            self._off = self._warned = True  # what it says from now on is of no use
            self._tracker.abandon()
        if lost := self._asked - self._done:
            warn(f"{self.name} did not get {lost} of {self._asked} rows and files")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warn(f"{self.name}: {reason}; the run goes on, its own files have everything")


def warn(text: str) -> None:
    """One line on the standard error stream."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def tracked(names: Sequence[str], run: TrackedRun | None) -> Iterator[Trackers]:
    """The trackers of a run inside the block, ended with how it ended.

    `end` may be called inside; a block that was left by an exception has failed, and a second
    ctrl-c waits for nobody.
    """
    trackers = Trackers(names, run)
    try:
        yield trackers
    except KeyboardInterrupt:
        trackers.end("stopped", 0.0)
        raise
    except BaseException:
        trackers.end("failed", END_SECONDS / 3)
        raise
    trackers.end("stopped")


def run_id(workdir: Path) -> str:
    """The id of the run in this folder; drawn and written down on first use.

    Raises:
      ValueError: the file is there and does not say it.
    """
    path = workdir / IDS
    if not path.exists():
        found = secrets.token_hex(8)
        write_atomic(path, (json.dumps({"id": found}) + "\n").encode())
        return found
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} should hold {{"id": ...}}, by which trackers know the run again; put it back, '
            "or delete the file to begin a new run there"
        ) from error
