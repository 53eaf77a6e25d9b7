"""Shards and companions written to an object store."""

from __future__ import annotations

import contextlib
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipelines.__main__ import main as data
from data_pipelines.ingest.__main__ import main as ingest
from data_pipelines.records import manifest, remote_lock, storage
from data_pipelines.records.companion import CompanionWriter, open_companion
from data_pipelines.records.dataset import open_dataset
from data_pipelines.synthetic import World, write_world

OUT = "memory://sets/world"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_world(World(size=32, frames=6), folder, {"train": 6, "test": 2})
    return folder / "annotations.jsonl"


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(remote_lock, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.0)


def run(videos: Path, out: object, *more: str) -> int:
    return ingest([f"--source={videos}", f"--out={out}", "--name=w", "--workers=0", *more])


def test_an_ingest_writes_the_same_files_everywhere(videos, tmp_path, capsys):
    shards = ("--shards=2",)
    assert run(videos, tmp_path / "here", *shards) == 0
    assert run(videos, OUT, *shards) == 0
    here = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    del here["ingest.lock"]  # the kernel's lock leaves its file
    assert {name: storage.read_bytes(f"{OUT}/{name}") for name in storage.below(OUT)} == here
    assert data(["verify", OUT, "--workers=0"]) == 0
    assert len(open_dataset(manifest.load(OUT), "train")) == 6
    assert run(videos, OUT, *shards) == 0
    assert "4 shards were complete from an earlier run" in capsys.readouterr().out
    assert not Path("memory:").exists()


def test_an_ingest_that_was_stopped_goes_on_there(videos, tmp_path, monkeypatch, capsys):
    real, left = storage.upload, [2]

    def upload(source: object, path: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(source, path)

    monkeypatch.setattr(storage, "upload", upload)
    assert run(videos, OUT, "--shards=3") == 130
    assert not storage.exists(f"{OUT}/manifest.json")
    left[0] = 100
    assert run(videos, OUT, "--shards=3") == 0
    assert left[0] == 97  # of five
    assert data(["verify", OUT, "--workers=0"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out=sftp://host/set",), "--out=sftp://host/set: sftp:// is only read"),
        (("--out=s3://",), "names no bucket"),
        (("--out=memory://b/set", "--runner=beam"), "--out: found memory://b/set, expected a loc"),
        (("--source=s3://b/videos", "--out=x"), "--source: found s3://b/videos, expected a local"),
        (("--classes=s3://b/classes.json", "--out=x"), "--classes: found s3://b/classes.json, exp"),
    ],
)
def test_what_an_ingest_cannot_do_is_refused(
    videos, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert ingest([f"--source={videos}", *arguments]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_companion_is_written_and_read_there(videos, tmp_path):
    assert run(videos, tmp_path / "set", "--shards=2") == 0
    made, place = manifest.load(tmp_path / "set"), "memory://sets/features"
    writer = CompanionWriter(place, "f", made, "train")
    assert writer.missing() == [0, 1]
    with contextlib.suppress(KeyError), writer.shard(0) as shard:
        shard.append({"x": np.zeros(3, np.float32)})
        raise KeyError
    assert storage.below(place) == {}
    for number in writer.missing():
        with writer.shard(number) as shard:
            for index in writer.records(number):
                shard.append({"x": np.full(3, index, np.float32)})
    again = CompanionWriter(place, "f", made, "train")
    assert again.missing() == []
    again.finish()
    found = open_companion(place, made, "train")
    assert [int(each["x"][0]) for each in found] == list(range(6))
