"""The data benchmark runs, and judges what it measured."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.data_pipelines.ingest.clips import make_video

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    make_video(root / "clip.mp4", 150, width=340, height=256, fps=30, gop=12)
    make_video(root / "short.mp4", 30, width=340, height=256)
    make_video(root / "other.mp4", 80)
    (root / "notes.txt").write_text("no video")
    return root


@pytest.fixture
def main(monkeypatch, capsys):
    """Run the benchmark in this process; returns exit code, stdout and stderr."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("data")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["data.py", *map(str, arguments)])
        try:
            code = benchmark.main()
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    sys.modules.pop("data")  # too plain a name to leave behind


def test_what_was_measured_is_judged(main, videos, tmp_path):
    out = tmp_path / "out.json"
    code, text, err = main("--videos", videos, "--rows", "bytes", "assembly", "--out", out)
    assert code == 1, err
    assert "1 clips: clip.mp4" in text and "1 of 2 targets missed" in text
    share, written = json.loads(out.read_text())
    # Five seconds instead of ten: 16 of 150 frames, and the head of the record.
    assert 16 / 150 <= share["measured"] < 1.3 * 16 / 150 and share["passed"] is False
    assert written["measured"] == 1 and written["passed"] is True
    assert text.count("FAIL") == 1 and text.count(" pass ") == 1


@pytest.mark.slow
def test_every_row(main, videos, tmp_path):
    out = tmp_path / "out.json"
    small = ["--rounds", 1, "--files", 4, "--batches", 2, "--records", 2000]
    code, _, err = main("--videos", videos, *small, "--out", out)
    rows = json.loads(out.read_text())
    assert code == (1 if any(row["passed"] is False for row in rows) else 0), err
    assert len({row["row"] for row in rows}) == 7
    # Only decord may be missing.
    assert [r["what"] for r in rows if r["measured"] is None] in ([], [rows[0]["what"]])
    assert all(row["measured"] > -1 for row in rows if row["measured"] is not None)


def test_no_clip_of_that_size(main, videos):
    code, _, err = main("--videos", videos, "--size", "640x360")
    assert code == 2
    assert "no video of 640x360 with more than 64 frames; found 340x256, 64x48" in err
    code, _, err = main("--videos", videos / "none")
    assert code == 2 and "no such directory" in err
