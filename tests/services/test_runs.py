"""Whole commands on S3 and Google Cloud Storage, with kills and faults between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.records import storage
from internvideo_jax.checkpoint.steps import newest_step
from tests.conftest import ROOT, environment
from tests.services.conftest import STEPS, VIDEOS, Store, ingest, lose, train
from tests.services.proxy import Fault

pytestmark = pytest.mark.services


def test_commands_on_an_object_store_give_what_they_give_on_a_disk(
    store: Store, videos, local, command, tmp_path, staging
):
    _shards(store, videos, local, command)
    _run(store, local, command, staging)
    _results(store, local, command, tmp_path)


def _shards(store: Store, videos: Path, local: Path, command) -> None:
    out, proxy = f"{store.url}/set", store.proxy
    proxy.faults += [
        Fault("(PUT|POST) .*tfrecord", "503", times=2),
        Fault("(PUT|POST) .*manifest.json", "500"),
    ]
    done = command("data_pipelines.ingest", *ingest(videos, out))
    assert done.returncode == 0, done.stderr
    here = {path.name: path.read_bytes() for path in (local / "set").iterdir()}
    del here["ingest.lock"]
    assert {name: storage.read_bytes(f"{out}/{name}") for name in storage.below(out)} == here
    proxy.faults.append(Fault("GET .*tfrecord", "cut"))
    done = command("data_pipelines", "verify", out)
    assert done.returncode == 0, done.stdout + done.stderr
    done = command("data_pipelines", "inspect", out, "--out", str(local / "sheet"),
                   "--config.data.clip.resolution=32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{VIDEOS}" in done.stdout


def _run(store: Store, local: Path, command, staging: Path) -> None:
    """Killed while it uploads the checkpoint of step 4, and started again on another machine."""
    proxy, run = store.proxy, f"{store.url}/run"
    arguments = train(f"{store.url}/set", run)
    words = [sys.executable, "-m", "internvideo_jax.train", *arguments]
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)  # fmt: skip
    proxy.faults.append(Fault("(PUT|POST) .*checkpoints(/|%2F)2", "503", times=2))
    kill = lambda: os.kill(process.pid, signal.SIGKILL)  # noqa: E731
    proxy.faults.append(Fault("(PUT|POST) .*checkpoints(/|%2F)4(/|%2F)state", "delay", do=kill))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, said
    assert newest_step(run) == 2
    lose(staging)
    proxy.faults += [Fault("GET .*checkpoints", "cut"), Fault("(PUT|POST) .*metrics", "500")]
    done = command("internvideo_jax.train", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"continuing at step 2 from {run}/checkpoints" in done.stdout
    assert f"report: {run}/report.html" in done.stdout
    metrics = storage.read_bytes(f"{run}/metrics.jsonl")
    assert metrics == (local / "run/metrics.jsonl").read_bytes()
    assert {"results/test.json", "perf.jsonl"} <= storage.below(run).keys()
    about = json.loads(storage.read_text(f"{run}/run.json"))
    expected = json.loads((local / "run/run.json").read_text())
    assert about["params_digest"] == expected["params_digest"]
    assert storage.listdir(f"{run}/checkpoints") == ["4", "6"]


def _results(store: Store, local: Path, command, tmp_path: Path) -> None:
    run, out = f"{store.url}/run", f"{store.url}/results"
    results = []
    for checkpoint, place in ((run, out), (str(local / "run"), str(tmp_path))):
        done = command(
            *("internvideo_jax.evaluate", f"--checkpoint={checkpoint}", "--per_video=top5"),
            *(f"--out={place}/r.json", "--only=test"),
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(storage.read_text(f"{place}/r.json")))
        done = command(
            *("internvideo_jax.offline.extract", f"--checkpoint={checkpoint}"),
            *(f"--out={place}/features", "--batch=8", "--split=test"),
        )
        assert done.returncode == 0, done.stderr
        done = command(
            *("internvideo_jax.offline.predict", str(local / "set"), f"--checkpoint={checkpoint}"),
            f"--out={place}/predictions.csv",
        )
        assert done.returncode == 0, done.stderr
    there, here = ({name: one["metrics"] for name, one in found["results"].items()}
                   for found in results)  # fmt: skip
    assert there == here and here
    assert results[0]["checkpoint"] == f"{run}/checkpoints/{STEPS}"
    for folder, left_out in (("r", ("results/test.json",)), ("features", ("features-test.json",))):
        there = storage.below(f"{out}/{folder}")
        here = {p.relative_to(tmp_path / folder).as_posix() for p in (tmp_path / folder).rglob("*")
                if p.is_file()}  # fmt: skip
        assert set(there) == here
        for name in here - {*left_out}:
            found = storage.read_bytes(f"{out}/{folder}/{name}")
            assert found == (tmp_path / folder / name).read_bytes(), name
    assert (
        storage.read_bytes(f"{out}/predictions.csv") == (tmp_path / "predictions.csv").read_bytes()
    )
    done = command("internvideo_jax.telemetry.report", run, "--out", f"{out}/report.html")
    assert done.returncode == 0, done.stderr
    assert b"<svg" in storage.read_bytes(f"{out}/report.html")


def test_storage_that_is_away_ends_a_command_with_a_code_to_start_it_again(
    store: Store, local, command, monkeypatch
):
    """Exit code 75, one message, no traceback; and nothing half written is there afterwards."""
    from data_pipelines.commands.exit_codes import ExitCode

    place = f"{store.url}/away.csv"
    store.proxy.faults.append(Fault("(PUT|POST) .*away.csv", "403"))
    done = command(
        *("internvideo_jax.offline.predict", str(local / "set")),
        *(f"--checkpoint={local}/run", f"--out={place}"),
    )
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not storage.exists(place)
