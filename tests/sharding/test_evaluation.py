"""The same checkpoint evaluated on one device, on eight, and in two processes: the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tests.sharding.evaluating import MODELS, save_random
from tests.sharding.test_processes import together

VIDEOS = 23  # divides by nothing


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Folders with weights and with shards."""
    from data_pipelines.ingest.__main__ import main as ingest
    from data_pipelines.synthetic import World, write_world

    folder = tmp_path_factory.mktemp("evaluated")
    write_world(World(size=64, frames=20), folder / "videos", {"test": VIDEOS})
    annotations, shards = folder / "videos/annotations.jsonl", folder / "shards"
    assert ingest([f"--source={annotations}", f"--out={shards}", "--name=odd", "--workers=1"]) == 0
    for name in MODELS:
        save_random(name, shards, folder)
    return folder, shards


def arguments(files: tuple[Path, Path], out: Path) -> list[str]:
    return [sys.executable, "-m", "tests.sharding.evaluating", *map(str, (*files, out))]


def results(out: Path) -> dict[str, dict]:
    found = {}
    for name in MODELS:
        content = json.loads((out / f"{name}.json").read_text())
        found[name] = content["results"]["test"]
    return found


@pytest.fixture(scope="module")
def one(files, tmp_path_factory) -> dict[str, dict]:
    return alone(files, tmp_path_factory.mktemp("one"), 1)


def alone(files: tuple[Path, Path], out: Path, devices: int) -> dict[str, dict]:
    done = subprocess.run(
        arguments(files, out),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return results(out)


def test_the_numbers_are_worth_comparing(one):
    for name, result in one.items():
        assert result["metrics"]["videos"] == VIDEOS, name
        assert result["protocol"]["segments"] * result["protocol"]["crops"] == 6
        predicted = [sum(row) for row in zip(*result["tables"]["confusion"], strict=True)]
        assert sum(count > 0 for count in predicted) > 1, name  # not one class for all
    digests = {result["tables"]["scores_sha256"] for result in one.values()}
    assert len(digests) == len(MODELS)


def test_eight_devices_give_the_same_numbers(one, files, tmp_path):
    assert alone(files, tmp_path, 8) == one  # metrics, tables and the digest of all scores


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(one, files, tmp_path):
    together(arguments(files, tmp_path), 2)
    assert results(tmp_path) == one
