"""Scripts as a user starts them, with stand-ins for the programs of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
# Of a recipe that is there, for what is checked before it is submitted.
CHECKED = (
    "--config=videomae/pretrain:size=base",
    "--workdir=/mnt/shared/run",
    "--config.data.train=/mnt/shared/k400",
)
TRAIN = ("--config=configs/x.py:size=base", "--workdir=/mnt/shared/run")

Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs a script in `tmp_path`; `PATH` holds only what is put in tmp_path/bin and the system's
    own directories without gcloud."""

    def run(name: str, *arguments: str, timeout: float = 60, **variables: str):
        command = [str(SCRIPTS / name), *arguments]
        if name.endswith(".py"):
            command.insert(0, sys.executable)
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**script_environment(tmp_path), **variables},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


def script_environment(folder: Path) -> dict[str, str]:
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    # Only these programs: an installed gcloud or sbatch must not be found.
    for program in ("bash", "env", "git", "dirname", "seq", "sleep", "mkdir", "tail", "cat", "rm",
                    "setsid", "nohup", "cp", "wc", "mktemp"):  # fmt: skip
        link = bin_folder / program
        for place in ("/usr/bin", "/bin"):
            found = Path(place) / program
            if found.exists() and not link.is_symlink():
                link.symlink_to(found)
    return {
        "PATH": str(bin_folder),
        "PYTHON": sys.executable,
        "PYTHONPATH": os.environ.get("TEST_PYTHONPATH", str(ROOT)),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "JAX_PLATFORMS": "cpu",
    }


def program(folder: Path, name: str, text: str) -> None:
    """A stand-in for a program of the cluster."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
