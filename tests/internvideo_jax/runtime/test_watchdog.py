"""A loop that hangs: what is written down, when, and when not."""

from __future__ import annotations

import subprocess
import sys
import time

from internvideo_jax.config import WatchdogConfig
from internvideo_jax.runtime.watchdog import Watchdog
from tests.conftest import ROOT, environment

QUICK = WatchdogConfig(factor=3.0, seconds=0.3, pause_seconds=0.6)


def a_stream_that_sleeps(seconds: float) -> None:
    time.sleep(seconds)


def steps(watchdog: Watchdog, count: int = 8) -> None:
    for step in range(1, count + 1):
        watchdog.stepped(step)
        time.sleep(0.01)


def test_a_sleeping_stream_is_named_once_with_what_the_loop_did(tmp_path, capfd):
    with Watchdog(QUICK, tmp_path, 3) as watchdog:
        steps(watchdog)
        with watchdog.doing("waiting for data"):
            a_stream_that_sleeps(1.0)
        watchdog.stepped(9)
        time.sleep(0.2)
    text = (tmp_path / "stacks-3.txt").read_text()
    assert text.count("watchdog: step 9 has taken") == 1
    assert "waiting for data (limit 0 s" in text and "a_stream_that_sleeps" in text
    errors = capfd.readouterr().err
    assert "a_stream_that_sleeps" in errors and "step 9 went on after 1 s" in errors


def test_nothing_is_written_while_compiling_or_for_a_pause_below_its_limit(tmp_path):
    with Watchdog(QUICK, tmp_path, 0) as watchdog:
        time.sleep(0.5)  # the first step compiles
        steps(watchdog)
        with watchdog.doing("evaluating", pause=True):
            time.sleep(0.5)
        watchdog.stepped(9)
    assert not list(tmp_path.iterdir())
    with Watchdog(WatchdogConfig(factor=0.0, seconds=0.1), tmp_path, 0) as off:
        steps(off)
        time.sleep(0.3)
    assert not list(tmp_path.iterdir())


def test_a_pause_has_a_limit_of_its_own(tmp_path):
    with Watchdog(QUICK, tmp_path, 0) as watchdog:
        steps(watchdog)
        with watchdog.doing("saving", pause=True):
            time.sleep(1.0)
    assert ", saving (limit 1 s" in (tmp_path / "stacks-0.txt").read_text()


def test_a_run_that_hangs_for_long_is_ended_when_asked(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.internvideo_jax.runtime.hanging", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 75
    assert "hangs for 1 s, in the step; the stacks are in" in done.stderr
