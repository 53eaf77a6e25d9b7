"""A checkpoint on other processes and other meshes than those that wrote it, bit for bit."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tests.faults.jobs import finished, launched


def state(what: str, folder, processes: int, devices: int, axes: str) -> tuple[str, int]:
    arguments = ["-m", "tests.faults.state", what, str(folder), axes]
    output = finished(launched(arguments, processes, devices))
    found = set(re.findall(r"digest (\w+) split (\d+)", output))
    assert len(found) == 1, output[-3000:]  # the same on all processes
    digest, split = found.pop()
    return digest, int(split)


@pytest.mark.slow
def test_a_state_moves_between_processes_and_meshes_bit_for_bit(tmp_path):
    saved, split = state("save", tmp_path, 2, 2, "2,2,1")
    assert split > 10
    for processes, devices, axes in ((1, 8, "2,2,2"), (4, 1, "1,4,1"), (1, 1, "1,1,1")):
        restored, split = state("restore", tmp_path, processes, devices, axes)
        assert restored == saved, (processes, devices, axes)
        assert (split > 10) == (axes != "1,1,1")
    damage(tmp_path / "checkpoints/1")
    arguments = ["-m", "tests.faults.state", "restore", str(tmp_path), "2,2,1"]
    done = subprocess.run(
        launched(arguments, 2, 2), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "step 1 in " in told and " is damaged (" in told, told[-3000:]


def damage(step: Path) -> None:
    """Zeroes the middle of every large file."""
    for file in (step / "state").rglob("d/*"):
        content = bytearray(file.read_bytes())
        if len(content) > 10000:
            content[len(content) // 3 : len(content) // 2] = bytes(
                len(content) // 2 - len(content) // 3
            )
        file.write_bytes(content)
