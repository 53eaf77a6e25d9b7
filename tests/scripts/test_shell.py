"""The shell scripts, and what they write, as shellcheck sees them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.scripts.conftest import SCRIPTS, TRAIN, Script

SHELLCHECK = shutil.which("shellcheck")
needs_shellcheck = pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck")


@needs_shellcheck
@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts(path):
    done = subprocess.run([str(SHELLCHECK), str(path)], capture_output=True, text=True)
    assert done.stdout == "" and done.returncode == 0


@needs_shellcheck
def test_the_sbatch_file(script: Script):
    written = script("slurm.sh", "--dry-run", "--container=a.sif", "--", *TRAIN).stdout
    done = subprocess.run([str(SHELLCHECK), "-"], input=written, capture_output=True, text=True)
    assert done.stdout == "" and done.returncode == 0


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_they_stop_at_errors_and_can_be_started(path):
    assert "\nset -euo pipefail\n" in path.read_text()
    assert path.stat().st_mode & 0o111
