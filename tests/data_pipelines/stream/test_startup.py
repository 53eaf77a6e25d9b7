"""Opening large splits: simulated index files beside shards that take no disk space."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def scale(monkeypatch):
    """The benchmark's part that makes such splits."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("data_scale")


def measure(directory: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.data_pipelines.stream.opening", str(directory)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_opening_a_hundred_thousand_records(scale, tmp_path):
    scale.simulate(tmp_path / "set", 100_000)
    found = measure(tmp_path / "set")
    assert found["records"] == 100_000 and found["frames_of_last"] == scale.RECORD_FRAMES
    # 24 bytes a record, three times while the parts are put together.
    assert found["grown_mb"] < 3 * 24 * 100_000 / 2**20 + 30
    assert found["seconds"] < 5


@pytest.mark.slow
def test_opening_ten_million_records(scale, tmp_path):
    scale.simulate(tmp_path / "set", 10_000_000)
    found = measure(tmp_path / "set")
    assert found["records"] == 10_000_000
    assert found["seconds"] < 20 and found["peak_mb"] < 2048
    shutil.rmtree(tmp_path)  # pytest would keep 240 MB of it
