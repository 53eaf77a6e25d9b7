"""Tracks rows until it is killed, or so many: python -m ... TRACKER FOLDER [ROWS SECONDS]."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from internvideo_jax.telemetry.trackers.base import TrackedRun
from internvideo_jax.telemetry.trackers.delivery import Trackers

name, folder, *rows = sys.argv[1:]
run = TrackedRun("0123456789abcdef", "x", Path(folder), {"optim.lr": 1e-3})
trackers = Trackers([name], run)
for step in range(1, int(rows[0]) + 1 if rows else 10**6):
    trackers.log(step, {"train/loss": 1.0})
    time.sleep(0.02)
    if step == 50:
        print("there", flush=True)
trackers.end("finished", float(rows[1]))
