"""The profile of a few steps: own times, idle share, the page, the range of steps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from internvideo_jax.telemetry.profile import (
    Event,
    Profiler,
    Timelines,
    busy_share,
    own_times,
    short_source,
    summary,
)
from tests.conftest import TINY_PRETRAIN


def test_own_time_leaves_out_what_runs_inside():
    line = [
        Event("while", 0, 100),
        Event("dot", 10, 40),
        Event("call", 50, 90),
        Event("add", 60, 70),
        Event("dot", 100, 130),
    ]
    expected = [("while", 30), ("dot", 30), ("call", 30), ("add", 10), ("dot", 30)]
    assert own_times(line) == expected
    assert sum(own for _, own in own_times(line)) == 130


def test_busy_is_the_union_over_timelines():
    lines = [[Event("a", 0, 10), Event("b", 5, 20)], [Event("c", 15, 30), Event("d", 50, 60)]]
    assert busy_share(lines, 100) == pytest.approx(0.4)
    assert busy_share([], 100) == 0


def test_the_page_ranks_and_shares():
    trace = Timelines("TPU", {"a": [[Event("dot.1", 0, 6e6)]], "b": [[Event("add.7", 0, 2e6)]]})
    page = summary(
        trace,
        steps=(10, 11),
        seconds=0.008,
        cpu_seconds=0.004,
        sources={"dot.1": "jit(f)/jvp()/encoder/dot_general"},
        folder="plugins",
    )
    assert "step time: 0.004 s (mean of 2" in page
    assert "idle: 50.0 % of the time no operation ran on a device (mean of 2)" in page
    assert "| dot.1 | 1.500 | 75.0 % | 0.2 | encoder/dot_general |" in page
    assert "| add | 0.500 | 25.0 % |" in page
    empty = summary(
        Timelines("GPU", {}), steps=(1, 1), seconds=1, cpu_seconds=1, sources={}, folder=""
    )
    assert "The GPU trace has no operations." in empty


def test_sources_are_short_and_mark_gradients():
    assert short_source("jit(f)/jvp()/while/body/closed_call/dot_general") == "dot_general"
    assert short_source("jit(f)/transpose(jvp())/decoder/mul") == "gradient: decoder/mul"


@pytest.mark.parametrize(("start", "steps"), [(-1, 5), (8, 4), (3, 0)])
def test_a_range_outside_of_the_run_is_an_error(tmp_path, start, steps):
    with pytest.raises(ValueError, match=r"config.profile.start = .* between 1 and 10"):
        Profiler(tmp_path, start, steps, last=10)


def test_a_trace_of_some_steps(tmp_path):
    @jax.jit
    def compute(x):
        return jnp.tanh(x @ x) / 512

    x = compute(jnp.ones((512, 512)))
    profiler = Profiler(tmp_path, 3, 2, last=6)
    for step in range(1, 7):
        if profiler.begins(step):
            profiler.begin(step, x)
        with profiler.step(step):
            x = compute(x)
        if profiler.ends(step):
            time.sleep(0.05)  # idle time that the page must show
            said = profiler.finish(step, x, lambda x=x: compute.lower(x).compile().as_text())
            assert step == 4
    page = (tmp_path / "profile/summary.md").read_text()
    assert said == f"profile of steps 3 to 4: {tmp_path}/profile/summary.md"
    assert "# Profile of steps 3 to 4" in page and "not in a CPU trace" in page
    assert "| 1.0 | dot_general |" in page  # once per step, with its source
    idle = float(page.split("idle: ")[1].split(" %")[0])
    assert 0 < idle < 100
    assert profiler.finish(6, x) == ""


def test_without_a_start_nothing_is_traced(tmp_path):
    profiler = Profiler(tmp_path, 0, 5, last=3)
    assert not profiler.begins(1) and not profiler.ends(1)
    assert profiler.finish(1, ()) == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # two training runs
def test_a_profile_changes_no_metric(command, shards, tmp_path):
    def run(name: str, *overrides: str) -> Path:
        done = command(
            "internvideo_jax.train",
            "--config=configs/videomae/pretrain.py:size=tiny",
            *TINY_PRETRAIN,
            f"--workdir={tmp_path / name}",
            f"--config.data.train={shards}",
            "--config.steps=8",
            "--config.optim.warmup_steps=2",
            "--config.log.every=2",
            "--config.log.report=False",
            *overrides,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / name

    plain = run("plain")
    traced = run("traced", "--config.profile.start=4", "--config.profile.steps=2")
    assert (plain / "metrics.jsonl").read_bytes() == (traced / "metrics.jsonl").read_bytes()
    assert "# Profile of steps 4 to 5" in (traced / "profile/summary.md").read_text()
    assert list((traced / "profile").rglob("*.xplane.pb"))
    assert not (plain / "profile").exists()
    assert json.loads((traced / "run.json").read_text())["config"]["profile"]["start"] == 4
