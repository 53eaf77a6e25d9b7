"""Trackers of somebody else, as tests name them in config.log.trackers."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

from internvideo_jax.telemetry.trackers.base import Tracker


class Recorder(Tracker):
    """Writes what it is told as lines of `recorded.jsonl` in the workdir."""

    def begin(self, run):
        self._file = open(run.workdir / "recorded.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._write("begin", **{**dataclasses.asdict(run), "workdir": str(run.workdir)})

    def log(self, step, values):
        self._write("log", step=step, values=dict(values))

    def picture(self, step, name, path):
        self._write("picture", step=step, picture=name, bytes=path.stat().st_size)

    def file(self, path):
        self._write("file", file=path.name)

    def end(self, status):
        self._write("end", status=status)
        self._file.close()

    def _write(self, call, **values):
        thread = threading.current_thread().name
        self._file.write(json.dumps({"call": call, "thread": thread, **values}) + "\n")
        self._file.flush()


class Failing(Tracker):
    """Takes nothing."""

    def log(self, step, values):
        raise RuntimeError("quota exceeded\nand more")


class Down(Tracker):
    """Cannot begin."""

    def begin(self, run):
        raise SystemExit("no server")


class Hanging(Tracker):
    """Is asked and does not answer."""

    def log(self, step, values):
        time.sleep(60)


class Absent(Tracker):
    """Needs what nobody has."""

    needs = ("no_such_library", "tracking")
