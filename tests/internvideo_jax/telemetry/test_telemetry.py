"""Metric files, progress, pictures."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from internvideo_jax.telemetry import pictures
from internvideo_jax.telemetry.progress import Progress, clock
from internvideo_jax.telemetry.report import write_report
from internvideo_jax.telemetry.writer import MetricWriter, keep_until, read_rows


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    writer = MetricWriter(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        writer.metrics(step, {"train/loss": 0.1 * step})
    writer.perf(3, {"perf/x": 1})
    writer.close()
    writer = MetricWriter(tmp_path, resume_step=2)
    writer.metrics(3, {"train/loss": 9.0})
    writer.close()
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert rows(tmp_path / "metrics.jsonl")[-1]["train/loss"] == 9.0
    assert rows(tmp_path / "perf.jsonl") == []


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    assert read_rows(path) == [{"step": 1, "a": 1}]
    keep_until(path, 5)
    assert path.read_text() == '{"step": 1, "a": 1}\n'


def test_float32_values_are_written_exactly(tmp_path):
    writer = MetricWriter(tmp_path, resume_step=0)
    value = np.float32(1 / 3)
    writer.metrics(1, {"x": float(value)})
    writer.close()
    assert np.float32(rows(tmp_path / "metrics.jsonl")[0]["x"]) == value


def test_progress_counts_from_the_second_log_point():
    progress = Progress(total=100, batch=8, flops=1e6)
    assert progress.lap(1) == {}
    with progress.waiting():
        pass
    values = progress.lap(11)
    assert values["perf/clips_per_second"] * values["perf/step_seconds"] == pytest.approx(8)
    assert values["perf/eta_seconds"] == pytest.approx(89 * values["perf/step_seconds"])
    assert 0 <= values["perf/data_wait"] <= 1
    assert "perf/mfu" not in values  # the peak of a CPU is not known
    line = progress.line(11, {"train/loss": 0.5, "train/lr": 1e-3, "train/nonfinite": 0}, values)
    assert line.startswith("step 11/100 11% | loss 0.5000 | lr 1.00e-03 | ")
    assert "nonfinite" not in line and "ETA 0:00:" in line


def test_the_pace_is_known_between_two_log_points():
    progress = Progress(total=100, batch=8, flops=1e6)
    assert progress.pace(1) == 0
    progress.lap(1)
    assert progress.pace(1) == 0 < progress.pace(2)
    assert progress.lap(11)["perf/step_seconds"] * 10 > progress.pace(1000)


def test_evaluation_does_not_count_as_step_time(monkeypatch):
    now = iter([0.0, 10.0, 17.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    progress = Progress(total=10, batch=1, flops=1.0)
    progress.lap(0)  # at 0
    with progress.paused(()):  # from 10 to 17
        pass
    assert progress.lap(1)["perf/step_seconds"] == pytest.approx(13.0)  # at 20


def test_steps_that_still_run_when_a_pause_begins_count_as_step_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Running:
        def block_until_ready(self):
            clock[0] += 8.0

    progress = Progress(total=10, batch=1, flops=1.0)
    progress.lap(0)
    with progress.paused({"params": Running()}):
        clock[0] += 5.0
    assert progress.lap(4)["perf/step_seconds"] == pytest.approx(2.0)


def test_mfu_where_the_peak_is_known(monkeypatch):
    monkeypatch.setattr("internvideo_jax.telemetry.progress.peak_flops", lambda: 1e9)
    now = iter([0.0, 2.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    progress = Progress(total=10, batch=4, flops=1e8)
    progress.lap(0)
    values = progress.lap(1)
    assert values["perf/mfu"] == pytest.approx(0.2)
    assert "MFU 20.0%" in progress.line(1, {}, values)


def test_clock():
    assert clock(3723.9) == "1:02:03"


def test_strips_put_frames_side_by_side():
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    picture = pictures.strip(list(clips), gap=1, scale=2)
    assert picture.shape == ((2 * 5 - 1) * 2, (3 * 6 - 1) * 2, 3)
    assert (picture[10:18:2, 24:34:2] == clips[1, 2]).all()
    animation = pictures.side_by_side(list(clips), gap=2)
    assert animation.shape == (3, 4, 12, 3) and (animation[:, :, 7:] == clips[1]).all()


def test_pictures_are_files_that_open(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pictures.write_gif(tmp_path / "a/clip.gif", clip)
    pictures.write_png(tmp_path / "a/frame.png", clip[0])
    assert Image.open(tmp_path / "a/clip.gif").n_frames == 3
    assert (np.asarray(Image.open(tmp_path / "a/frame.png")) == clip[0]).all()
    heat = pictures.confusion_picture(np.array([[3, 1], [0, 2]]), ["a", "b"])
    assert heat.ndim == 3 and heat.dtype == np.uint8 and heat.std() > 10


def test_report_of_something_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"no run.json here; expected the --workdir"):
        write_report([tmp_path], tmp_path / "report.html")


def a_run(folder, loss, metrics):
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    pictures.write_png(folder / "pictures/test-video0.png", clip[0])
    about = {
        "config": {
            "model": {"name": "m"},
            "objective": {"name": "o"},
            "data": {"global_batch": 4},
        },
        "devices": {"count": 1, "kind": "cpu"},
    }
    (folder / "results").mkdir()
    (folder / "run.json").write_text(json.dumps(about))
    result = {
        "evaluator": "reconstruction",
        "metrics": metrics,
        "protocol": {"split": "test"},
        "tables": {},
        "pictures": {"video0": "pictures/test-video0.png"},
        "captions": {"video0": "Rows, from the top: <the clip>"},
    }
    (folder / "results/test.json").write_text(json.dumps(result))
    rows = [{"step": step, "train/loss": loss / step} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_report_has_results_then_curves_then_pictures_and_runs_as_columns(tmp_path):
    one = a_run(tmp_path / "one", 1.0, {"loss": 0.5, "clips": 20.0})
    two = a_run(tmp_path / "two", 2.0, {"loss": 0.25, "top1": 0.75})
    page = write_report([one, two], tmp_path / "report.html").read_text()
    comparison, first, _ = page.split("<h2>")[1:]
    assert "<th>one</th><th>two</th>" in comparison
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in comparison.split("<tr>")[2:]]
    assert [row for row in rows if row] == [
        ["test", "loss", "0.5", "0.25"],
        ["test", "clips", "20", ""],
        ["test", "top1", "", "0.75"],
    ]
    places = [first.index(part) for part in ("<h3>test", "<h3>Curves", "<h3>Pictures of test")]
    assert places == sorted(places)
    assert "video0. Rows, from the top: &lt;the clip&gt;" in first
