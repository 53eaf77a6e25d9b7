"""The same checkpoint evaluated on one device, on eight, and in two processes: the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.stream.pipeline import ViewPass
from internvideo_jax.inference.pixels import PixelDigest
from tests.sharding.evaluating import MODELS, config_of, save_random
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


@pytest.fixture(
    scope="module", params=["videomae", pytest.param("uniformerv2", marks=pytest.mark.slow)]
)
def name(request) -> str:
    return request.param


def arguments(name: str, files: tuple[Path, Path], out: Path) -> list[str]:
    return ["tests.sharding.evaluating", name, *map(str, (*files, out))]


def result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())["results"]["test"]


@pytest.fixture(scope="module")
def alone(command, name, files):
    def run(out: Path, devices: int) -> dict:
        done = command(*arguments(name, files, out), devices=devices)
        assert done.returncode == 0, done.stderr[-3000:]
        return result(out)

    return run


@pytest.fixture(scope="module")
def one(alone, tmp_path_factory) -> dict:
    return alone(tmp_path_factory.mktemp("one"), 1)


def test_eight_devices_give_the_same_numbers(alone, one, tmp_path):
    assert one["metrics"]["videos"] == VIDEOS
    assert one["protocol"]["clips"] * one["protocol"]["crops"] == 6
    predicted = [sum(row) for row in zip(*one["tables"]["confusion"], strict=True)]
    assert sum(count > 0 for count in predicted) > 1  # not one class for all
    # Metrics, tables, the digests of all scores and of what was seen to the last bit.
    assert alone(tmp_path, 8) == one


def test_the_digest_of_pixels_is_that_of_the_views_without_padding(name, one, files):
    config = config_of(name, files[1])
    (source,) = config.evals["test"].inputs()
    views = ViewPass(str(files[1]), "test", source.views)
    seen = PixelDigest()
    for batch in views:
        seen.add(batch)
    assert one["pixels"] == seen.content() and seen.clips == 6 * VIDEOS


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(name, one, files, tmp_path):
    together(arguments(name, files, tmp_path), 2)
    assert result(tmp_path) == one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["videomae"], indirect=True)  # the model has no part in it
def test_so_do_four_that_read_other_batches(name, one, files, tmp_path):
    together([*arguments(name, files, tmp_path), "8"], 4)
    assert result(tmp_path) == one
