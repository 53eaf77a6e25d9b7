"""Trackers: what they are told, how a run goes on, and that none of them can harm it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.config import LogConfig, current, to_typed
from internvideo_jax.telemetry import pictures
from internvideo_jax.telemetry.trackers import delivery
from internvideo_jax.telemetry.trackers.base import TrackedRun
from internvideo_jax.telemetry.trackers.delivery import Trackers, check_trackers, run_id, tracked
from internvideo_jax.telemetry.writer import MetricWriter, last_step
from tests.conftest import TINY_PRETRAIN

HERE = "tests.internvideo_jax.telemetry.recording"
RECORDER = f"{HERE}:Recorder"


def a_run(folder: Path, **values) -> TrackedRun:
    return TrackedRun("0123456789abcdef", "x", folder, {"optim.lr": 1e-3}, "recipe", **values)


def recorded(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "recorded.jsonl").read_text().splitlines()]


def test_everything_arrives_in_order_and_in_another_thread(tmp_path):
    with tracked([RECORDER], a_run(tmp_path)) as trackers:
        writer = MetricWriter(tmp_path, resume_step=0, trackers=trackers)
        for step in (1, 2):
            writer.metrics(step, {"train/loss": step / 2})
        pictures.write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
        writer.picture(2, "eval/a", tmp_path / "a.png")
        trackers.file(tmp_path / "run.json")
        trackers.end("finished")
    calls = recorded(tmp_path)
    assert [call["call"] for call in calls] == ["begin", "log", "log", "picture", "file", "end"]
    assert calls[1]["values"] == {"train/loss": 0.5} and calls[-1]["status"] == "finished"
    assert {call["thread"] for call in calls} == {f"tracker {RECORDER}"}
    assert calls[0]["config"] == {"optim.lr": 1e-3} and calls[0]["id"] == "0123456789abcdef"


@pytest.mark.parametrize(
    ("error", "status"), [(None, "stopped"), (ValueError, "failed"), (KeyboardInterrupt, "stopped")]
)
def test_a_run_that_did_not_finish_says_how_it_ended(tmp_path, error, status):
    try:
        with tracked([RECORDER], a_run(tmp_path)):
            time.sleep(0.1)
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    deadline = time.monotonic() + 5  # after a second ctrl-c nobody waits for it
    while recorded(tmp_path)[-1]["call"] != "end" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert recorded(tmp_path)[-1]["status"] == status


def test_a_run_that_goes_on_at_an_earlier_step_is_marked(tmp_path):
    Trackers([RECORDER], a_run(tmp_path, start=2, seen=5)).end("stopped")
    assert recorded(tmp_path)[1] == {
        "call": "log", "thread": f"tracker {RECORDER}", "step": 2,
        "values": {"restart/after_step": 5},
    }  # fmt: skip
    Trackers([RECORDER], a_run(tmp_path, start=5, seen=5)).end("stopped")
    assert [call["call"] for call in recorded(tmp_path)[3:]] == ["begin", "end"]


def test_the_id_of_a_run_stays_in_its_workdir(tmp_path):
    first = run_id(tmp_path)
    assert len(first) == 16 and run_id(tmp_path) == first
    (tmp_path / "trackers.json").write_text("{")
    with pytest.raises(ValueError, match="delete the file to begin a new run"):
        run_id(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"), [("Failing", "quota exceeded;"), ("Down", "no server;")]
)
def test_a_tracker_that_fails_warns_once_and_the_others_get_everything(
    tmp_path, capfd, name, reason
):
    trackers = Trackers([f"{HERE}:{name}", RECORDER], a_run(tmp_path))
    for step in range(30):
        trackers.log(step, {"a": 1.0})
    trackers.end("finished")
    shown = capfd.readouterr().err
    assert shown.splitlines() == [
        f"warning: tracker {HERE}:{name}: {reason} the run goes on, its own files have everything",
        f"warning: tracker {HERE}:{name} did not get 30 of 30 rows and files",
    ]
    assert len(recorded(tmp_path)) == 32


def test_a_tracker_that_hangs_keeps_neither_a_step_nor_the_end(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(delivery, "WAITING", 5)
    trackers = Trackers([f"{HERE}:Hanging", RECORDER], a_run(tmp_path))
    began = time.monotonic()
    for step in range(20):
        trackers.log(step, {"a": 1.0})
        time.sleep(0.002)
    trackers.end("finished", 0.3)
    assert time.monotonic() - began < 10
    shown = capfd.readouterr().err
    assert shown.count("does not keep up: 5 calls behind") == 1
    assert f"warning: tracker {HERE}:Hanging did not get 20 of 20 rows" in shown
    assert recorded(tmp_path)[-1]["status"] == "finished"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wandbb"], "unknown tracker 'wandbb': did you mean 'wandb'"),
        (["wandb,mlflow"], r"several are written \('wandb','mlflow'\)"),
        (["no_such_module:A"], "'no_such_module:A' cannot be imported .*expected MODULE:CLASS"),
        ([f"{HERE}:Nobody"], "cannot be imported"),
        (["pathlib:Path"], "is no subclass of internvideo_jax.telemetry.trackers.base.Tracker"),
        ([RECORDER, RECORDER], "twice"),
        ([f"{HERE}:Absent"], r"needs no_such_library: pip install 'internvideo-jax\[tracking\]'"),
    ],
)
def test_a_wrong_tracker_is_refused_before_anything_runs(names, message):
    with pytest.raises(ValueError, match=message):
        check_trackers(names)


def test_tensorboard_files_are_written_when_asked_for(tmp_path):
    pytest.importorskip("tensorboardX")
    trackers = Trackers(["tensorboard"], a_run(tmp_path))
    writer = MetricWriter(tmp_path, resume_step=0, trackers=trackers)
    writer.metrics(1, {"train/loss": 0.5})
    pictures.write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    writer.picture(1, "eval/a", tmp_path / "a.png")
    trackers.end("finished")
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"train/loss" in events.read_bytes() and b"eval/a" in events.read_bytes()


def test_tensorboard_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"internvideo-jax\[tracking\]"):
        Trackers(["tensorboard"], a_run(tmp_path))


def test_the_switch_of_earlier_versions_is_read():
    for old, new in ((True, ("tensorboard",)), (False, ())):
        assert current(LogConfig, {"tensorboard": old}) == {"trackers": new}
    with pytest.raises(ValueError, match="it is called trackers now"):
        to_typed(LogConfig, {"tensorboard": True}, "config.log")


def test_a_training_is_tracked_and_a_restart_is_the_same_run(command, shards, tmp_path):
    words = (
        "--config=configs/videomae/pretrain.py:size=tiny", f"--workdir={tmp_path}", *TINY_PRETRAIN,
        f"--config.data.train={shards}", "--config.steps=4", "--config.optim.warmup_steps=1",
        "--config.log.every=1", "--config.checkpoint.every=2",
    )  # fmt: skip
    first = command("internvideo_jax.train", *words, f"--config.log.trackers=('{RECORDER}',)")
    assert first.returncode == 0, first.stderr
    calls = recorded(tmp_path)
    begin = calls[0]
    assert begin["recipe"] == "configs/videomae/pretrain.py:size=tiny"
    assert begin["config"]["steps"] == 4 and begin["start"] == begin["seen"] == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    sent = [{"step": call["step"], **call["values"]} for call in calls if call["call"] == "log"]
    assert [row for row in sent if not any(key.startswith("perf/") for key in row)] == rows
    drawn = [call for call in calls if call["call"] == "picture"]
    assert drawn and all(call["step"] == 4 and call["bytes"] for call in drawn)
    files = [call["file"] for call in calls if call["call"] == "file"]
    assert files == ["run.json", "run.json", "report.html"]
    assert calls[-1]["status"] == "finished" and last_step(tmp_path) == 4
    # The newest state is lost: steps 3 and 4 come again, in the same run, and it is marked.
    (tmp_path / "checkpoints/4").rename(tmp_path / "lost")
    again = command("internvideo_jax.train", *words, f"--config.log.trackers=('{RECORDER}',)")
    assert again.returncode == 0, again.stderr
    later = recorded(tmp_path)[len(calls) :]
    assert (later[0]["id"], later[0]["start"], later[0]["seen"]) == (begin["id"], 2, 4)
    marks = [call for call in later if "restart/after_step" in call.get("values", ())]
    assert [(mark["step"], mark["values"]["restart/after_step"]) for mark in marks] == [(2, 4)]
