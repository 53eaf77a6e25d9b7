"""A run that hangs behind its eighth step; argument: directory of the stacks."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from internvideo_jax.config import WatchdogConfig
from internvideo_jax.runtime.watchdog import Watchdog

config = WatchdogConfig(factor=3.0, seconds=0.3, abort_seconds=0.3)
with Watchdog(config, Path(sys.argv[1]), 0) as watchdog:
    for step in range(8):
        watchdog.stepped(step)
    time.sleep(60)
