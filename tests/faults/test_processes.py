"""Processes that die or are stopped: the others end, and a restart leaves no trace of it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, environment
from tests.faults.jobs import (
    LIMIT,
    digest,
    finished,
    ids,
    launched,
    losses,
    rows,
    training,
)

STEPS = 16
LENGTH = (
    f"--config.steps={STEPS}",
    "--config.checkpoint.every=4",
    "--config.evals.reconstruction.every=12",
)


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    finished(launched(training(shards, workdir, *LENGTH), 2))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "asynchronous", "continued"),
    [
        ("step:6", False, {4}),
        ("save:8", True, {4, 8}),  # a save that was cut counts only if it was complete
        ("evaluation:12", False, {8}),
    ],
)
def test_a_killed_process_ends_the_other_and_the_restart_gives_the_same_bits(
    shards, tmp_path, undisturbed, fault, asynchronous, continued
):
    save = f"--config.checkpoint.asynchronous={asynchronous}"
    arguments = training(shards, tmp_path, *LENGTH, save, faults=fault)
    output = finished(launched(arguments, 2, options=("--restarts=1",)), limit=2 * LIMIT)
    assert (tmp_path / f"done-{fault.replace(':', '-')}").exists()
    assert "process 1 of 2 ended with code 137" in output
    assert "process 0 of 2 ends: process 1 or its host is gone" in output
    assert "did not end by themselves" not in output
    restart = re.search(r"continuing at step (\d+)", output)
    assert restart and int(restart[1]) in continued, output[-4000:]
    assert f"the newest checkpoint is step {restart[1]}" in output  # the launcher's line
    assert digest(tmp_path) == digest(undisturbed)
    assert rows(tmp_path) == rows(undisturbed)
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_sigterm_to_one_and_to_all_saves_the_same_step_everywhere(shards, tmp_path, undisturbed):
    """Nothing is logged between the steps, so agreement cannot wait for a log point."""
    quiet = (*LENGTH, "--config.log.every=1000", "--config.checkpoint.every=1000")
    longer = (*quiet, "--config.steps=4000")

    # To one: process 1 gets it in step 6, both save one common step after that.
    arguments = training(shards, tmp_path / "one", *longer, faults="stop:6")
    output = finished(launched(arguments, 2), expected=128 + signal.SIGTERM)
    step = max(int(path.name) for path in (tmp_path / "one/checkpoints").iterdir())
    assert f"SIGTERM to a process of this job: saved step {step} in" in output
    assert 6 <= step < 4000
    assert [path.name for path in (tmp_path / "one/checkpoints").iterdir()] == [str(step)]

    # To all, through the launcher, which does not start a stopped job again.
    job = subprocess.Popen(
        launched(training(shards, tmp_path / "one", *longer), 2, options=("--restarts=3",)),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + LIMIT
    while step + 3 not in ids(tmp_path / "one") and time.monotonic() < deadline:
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    output = job.communicate(timeout=LIMIT)[0]
    assert job.returncode == 128 + signal.SIGTERM, output[-4000:]
    assert f"continuing at step {step}" in output
    later = max(int(path.name) for path in (tmp_path / "one/checkpoints").iterdir())
    assert later > step and output.count("saved step") == 1
    assert "launch: restart" not in output


@pytest.mark.slow
def test_an_alarm_stops_all_processes_at_the_same_step_and_is_said_once(shards, tmp_path):
    watch = (
        "--config.steps=40",
        "--config.checkpoint.every=6",
        "--config.checkpoint.keep=1",
        "--config.log.report=True",
        *(f"--config.evals.collapse.{rule}" for rule in (
            "action=stop", "every=4", "least_rank=1000", "clips=16", "views.batch=8",
        )),
    )  # fmt: skip
    command = launched(training(shards, tmp_path, *watch), 2, options=("--restarts=3",))

    def stopped(step: int, before: int) -> None:
        began = time.monotonic()
        output = finished(command, expected=3)
        assert output.count(f"stopped at step {step} of 40: config.evals.collapse: ") == 1, output
        assert output.count("error: ") == 1 and "launch: restart" not in output
        assert "did not end by themselves" not in output and time.monotonic() - began < LIMIT
        for process in (0, 1):
            seen = [row["step"] for row in rows(tmp_path, f"ids-{process}.jsonl")]
            assert max(seen) == step, process
        # The state that caused it is there to look at, and the one before it.
        kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert kept == {str(before), str(step)}
        alarm = json.loads((tmp_path / "results/collapse.json").read_text())["alarm"]
        assert "below least_rank = 1000" in alarm
        assert alarm in (tmp_path / "report.html").read_text()

    stopped(8, before=6)
    # Only the main process knows the looks before a restart; the others follow it.
    stopped(12, before=8)


@pytest.mark.slow
def test_half_and_twice_the_processes_see_the_same_stream_and_losses(shards, tmp_path):
    every = (f"--config.steps={STEPS}", "--config.log.every=1", "--config.checkpoint.every=1000")
    one, moved = tmp_path / "one", tmp_path / "moved"
    finished(launched(training(shards, one, *every), 1))
    # Two processes until step 4 or later, then one, then four.
    stop = 128 + signal.SIGTERM
    output = finished(launched(training(shards, moved, *every, faults="stop:3"), 2), expected=stop)
    first = int(re.findall(r"saved step (\d+)", output)[0])
    faults = f"stop:{first + 2}"
    output = finished(launched(training(shards, moved, *every, faults=faults), 1), expected=stop)
    assert f"continuing at step {first}" in output
    output = finished(launched(training(shards, moved, *every), 4))
    assert f"continuing at step {first + 2}" in output
    wanted, found = ids(one), ids(moved)
    for step in range(1, STEPS + 1):
        assert found[step] == wanted[step] and len(wanted[step]) == 8, step
    assert len(losses(moved)) == STEPS
    np.testing.assert_allclose(losses(moved), losses(one), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_evaluation_gives_the_same_numbers_on_every_arrangement(shards, tmp_path, undisturbed):
    found = {}
    for name, processes, devices in (("one", 1, 1), ("eight", 1, 8), ("two", 2, 2)):
        out = tmp_path / f"{name}.json"
        arguments = [
            "-m",
            "internvideo_jax.evaluate",
            *training(shards, tmp_path)[5:-2],
            f"--config.data.train={shards}",
            f"--checkpoint={undisturbed}",
            f"--out={out}",
        ]
        finished(launched(arguments, processes, devices))
        found[name] = json.loads(out.read_text())["results"]["reconstruction"]["metrics"]
    assert found["one"]["clips"] == 20
    for other in ("eight", "two"):
        assert found[other].keys() == found["one"].keys()
        for metric, value in found["one"].items():
            assert found[other][metric] == pytest.approx(value, abs=1e-6), (other, metric)


@pytest.mark.slow
def test_settings_that_do_not_fit_end_all_processes_at_once_without_a_restart(shards, tmp_path):
    for override, message in (
        ("--config.data.global_batch=9", "= 9 cannot be split evenly over 2 devices"),
        ("--config.mesh.fsdp=3", "asks for a multiple of 3 devices, found 2"),
    ):
        arguments = training(shards, tmp_path, *LENGTH, override)
        output = finished(launched(arguments, 2, options=("--restarts=3",)), expected=2)
        assert message in output and "launch: restart" not in output


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_other_with_its_text(shards, tmp_path):
    arguments = training(shards, tmp_path, *LENGTH, faults="error:3")
    began = time.monotonic()
    output = finished(launched(arguments, 2), expected=70)
    assert "TypeError: an error that nobody expected" in output
    assert "process 1 ended with an error: an error that nobody expected" in output
    assert "did not end by themselves" not in output and time.monotonic() - began < LIMIT


@pytest.mark.slow
def test_frozen_parameters_that_one_process_cannot_read_are_written_anew_by_all(tmp_path):
    said = finished(launched(["-m", "tests.faults.one_damaged", str(tmp_path)], 2))
    assert "written anew" in said
