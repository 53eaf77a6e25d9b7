""".ci/run, with a `make` that only says what it was asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.scripts.conftest import ROOT, program

PARTS = {"test", "test-slow", "test-newest", "test-aot", "test-torch", "test-browser", "test-beam",
         "test-services", "docs", "lint", "demo"}  # fmt: skip


def run(folder: Path, failing: str) -> subprocess.CompletedProcess[str]:
    (folder / "checkout/.ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", folder / "checkout/.ci/run")
    program(folder, "dpkg-query", "exit 0")
    said = 'echo "SKIPPED one of $1"; [[ " $FAILING " != *" $1 "* ]] || exit 2'
    program(folder, "make", said)
    return subprocess.run(
        [folder / "checkout/.ci/run"],
        env={"PATH": f"{folder}/bin:{os.environ['PATH']}", "FAILING": failing},
        capture_output=True,
        text=True,
    )


def test_every_part_is_run_and_told_with_its_minutes(tmp_path):
    done = run(tmp_path, "")
    assert done.returncode == 0, done.stderr
    _, minutes = done.stdout.split("\nminutes\n")
    assert set(re.findall(r"^ +\d+:\d\d  make (\S+)$", minutes, re.MULTILINE)) == PARTS
    assert minutes.count("SKIPPED one of ") == len(PARTS) and "failed" not in minutes


def test_a_part_that_fails_stops_no_other(tmp_path):
    done = run(tmp_path, "lint test")
    assert done.returncode == 1
    _, minutes = done.stdout.split("\nminutes\n")
    assert len(re.findall(r"^ +\d+:\d\d  make ", minutes, re.MULTILINE)) == len(PARTS)
    assert len(re.findall(r"make (?:lint|test)  FAILED with 2$", minutes, re.MULTILINE)) == 2
    assert done.stdout.endswith("\nfailed: lint test\n")
