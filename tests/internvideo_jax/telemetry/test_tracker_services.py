"""Weights & Biases and MLflow themselves: offline, in a local store, and with servers that fail."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.telemetry import pictures
from internvideo_jax.telemetry.trackers.base import TrackedRun
from internvideo_jax.telemetry.trackers.delivery import Trackers
from tests.conftest import ROOT

pytestmark = pytest.mark.services


def a_run(folder: Path, **values) -> TrackedRun:
    config = {"optim.lr": 1e-3, "model.name": "m", "init_whole": ()}
    return TrackedRun("0123456789abcdef", folder.name, folder, config, "x/y:size=base", **values)


def track(name: str, folder: Path, steps: range, status: str = "finished", **values) -> None:
    """One start of a run: rows of `steps`, a picture, a file."""
    trackers = Trackers([name], a_run(folder, **values))
    for step in steps:
        trackers.log(step, {"train/loss": 1.0 / step, "eval/a:b/top1": float("nan")})
    pictures.write_png(folder / "pictures/a.png", np.zeros((8, 8, 3), np.uint8))
    trackers.picture(steps[-1], "eval/a", folder / "pictures/a.png")
    (folder / "report.html").write_text("<p>report</p>")
    trackers.file(folder / "report.html")
    trackers.end(status, 60.0)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


BLOCK, HEADER = 2**15, 7


def payloads(data: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format, in which `wandb` keeps what it has not sent."""
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def records(folder: Path) -> list[list]:
    """The records of every offline start of a run, oldest first."""
    from wandb.proto import wandb_internal_pb2

    return [
        [wandb_internal_pb2.Record.FromString(each) for each in payloads(file.read_bytes())]
        for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    ]


def history(rows: list) -> list[dict]:
    return [
        {item.key or "/".join(item.nested_key): item.value_json for item in row.history.item}
        for row in rows
        if row.WhichOneof("record_type") == "history"
    ]


def test_wandb_offline_keeps_one_run_over_restarts(tmp_path, offline, capfd):
    track("wandb", tmp_path, range(1, 6), "stopped")
    time.sleep(1.1)  # its folders are named by seconds
    track("wandb", tmp_path, range(3, 8), start=2, seen=5)
    assert "warning" not in capfd.readouterr().err
    first, second = records(tmp_path)
    about = [row.run for rows in (first, second) for row in rows if row.HasField("run")]
    assert {each.run_id for each in about} == {"0123456789abcdef"}
    assert {each.project for each in about} == {"internvideo_jax"}
    config = {item.key or item.nested_key[0]: item.value_json for item in about[0].config.update}
    assert config["optim.lr"] == "0.001" and config["recipe"] == '"x/y:size=base"'
    steps = [
        [int(row["trainer/step"]) for row in history(rows) if "train/loss" in row]
        for rows in (first, second)
    ]
    assert steps == [[1, 2, 3, 4, 5], [3, 4, 5, 6, 7]]
    marks = [row["restart/after_step"] for row in history(second) if "restart/after_step" in row]
    assert marks == ["5"]
    assert any(key.startswith("eval/a/") for row in history(first) for key in row)
    kinds = [row.WhichOneof("record_type") for row in first]
    assert "exit" in kinds


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """track_steps.py in a process of its own."""
    # Not with the service of this process, which a kill would leave alive.
    kept = {key: value for key, value in os.environ.items() if "SERVICE" not in key}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.internvideo_jax.telemetry.track_steps", *map(str, words)],
        cwd=ROOT,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_leaves_wandb_usable(tmp_path, offline):
    process = start("wandb", tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    time.sleep(10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)
    (rows,) = records(tmp_path)
    assert len(history(rows)) >= 50
    track("wandb", tmp_path, range(3, 8), start=2, seen=5)
    assert len(records(tmp_path)) == 2


@pytest.fixture
def silent():
    """Port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def take() -> None:
            while True:
                try:
                    kept.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]


def test_wandb_without_a_key_is_kept_offline(tmp_path):
    nowhere = str(tmp_path / "none")
    away = {"WANDB_API_KEY": "", "WANDB_MODE": "online", "NETRC": nowhere}
    process = start("wandb", tmp_path, 3, 60, **away, WANDB_CONFIG_DIR=nowhere)
    _, said = process.communicate(timeout=120)
    (line,) = [line for line in said.splitlines() if line.startswith("warning")]
    assert "API key" in line and "`wandb sync` sends it" in line
    (rows,) = records(tmp_path)
    assert len(history(rows)) == 3 and process.returncode == 0


def test_mlflow_keeps_one_run_over_restarts(tmp_path, monkeypatch, capfd):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    track("mlflow", tmp_path, range(1, 6), "stopped")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("internvideo_jax")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED" and run.data.params["optim.lr"] == "0.001"
    track("mlflow", tmp_path, range(3, 8), start=2, seen=5)
    (again,) = client.search_runs([experiment.experiment_id])
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    rows = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(row.step for row in rows) == [1, 2, 3, 3, 4, 4, 5, 5, 6, 7]
    (mark,) = client.get_metric_history(run.info.run_id, "restart/after_step")
    assert (mark.step, mark.value) == (2, 5.0)
    assert client.get_metric_history(run.info.run_id, "eval/a_b/top1")
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"pictures", "report.html"}
    assert "warning: tracker" not in capfd.readouterr().err


def test_a_silent_mlflow_server_costs_no_time(tmp_path, monkeypatch, capfd, silent):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent}")
    began = time.monotonic()
    trackers = Trackers(["mlflow"], a_run(tmp_path))
    for step in range(100):
        trackers.log(step, {"a": 1.0})
    assert time.monotonic() - began < 5
    trackers.end("finished", 2.0)
    assert time.monotonic() - began < 10
    assert "did not get 100 of 100 rows" in capfd.readouterr().err


def test_a_silent_wandb_server_keeps_no_process(tmp_path, silent):
    """The whole end of a process is bounded, with what the library does when it exits."""
    server = {"WANDB_BASE_URL": f"http://127.0.0.1:{silent}", "WANDB_MODE": "online"}
    began = time.monotonic()
    process = start("wandb", tmp_path, 60, 5, **server, WANDB_API_KEY="a" * 40)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "did not get" in said and time.monotonic() - began < 60, said
