"""The command line: options, exit codes, messages."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.ingest import __main__ as cli
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.tools.verify import verify
from tests.data_pipelines.ingest.clips import make_folder

ROOT = Path(__file__).parents[3]


@pytest.fixture
def videos(tmp_path):
    root = tmp_path / "videos"
    for label in ("run", "sit"):
        make_folder(root / label, (6, 6))
    return root


@pytest.fixture
def main(tmp_path, capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object, out: str = "out") -> tuple[int, str, str]:
        code = cli.main(["--out", str(tmp_path / out), "--workers", "0", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_command_of_the_documentation(videos, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "data_pipelines.ingest", "--source", videos, "--out", "shards/"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and "classes 2, rows listed 4" in done.stdout
    assert "4/4" in done.stderr and "error" not in done.stderr
    content = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert content["splits"]["train"]["records"] == 4
    assert (tmp_path / "shards" / "videos-train-00000-of-00001.tfrecord.idx").exists()


def test_every_option_reaches_the_ingest():
    """One non-default value each; a forgotten one would still be the default."""
    text = (
        "--source s.csv --out o --name n --root r --split val --columns path=p,label=l --shards 3 "
        "--shard-mb 7 --short-side 64 --pixels display --storage png --quality 80 --fps 5 "
        "--max-seconds 2 --min-frames 4 "
        "--partial reject --classes c --flip-changes-label --workers 5 --max-bad 0.5 "
        "--stall-seconds 9 --audio pcm16 --media auto --format rawframes --path-template {x} "
        "--cut no --frame-template f{} --frame-start 0 --frame-fps 12 --runner beam "
        "--hold-out 0.2 --hold-out-as dev --beam-options=--a=1 -- --runner F"
    )
    options = cli._options(cli.parse(text.split()))
    assert options == IngestOptions(
        source="s.csv",
        out="o",
        name="n",
        root="r",
        split="val",
        hold_out=0.2,
        hold_out_as="dev",
        columns={"path": "p", "label": "l"},
        shards=3,
        shard_mb=7.0,
        short_side=64,
        pixels="display",
        storage="png",
        quality=80,
        fps=5.0,
        max_seconds=2.0,
        min_frames=4,
        partial="reject",
        audio="pcm16",
        media="auto",
        classes_file="c",
        flip_changes_label=True,
        workers=5,
        max_bad=0.5,
        stall_seconds=9.0,
        format="rawframes",
        path_template="{x}",
        cut="no",
        frame_template="f{}",
        frame_start=0,
        frame_fps=12.0,
        runner="beam",
        beam_options=("--a=1", "--runner", "F"),
    )
    default = IngestOptions(source="s", out="o")
    for name in IngestOptions.__slots__:
        if name not in ("source", "out"):
            assert getattr(options, name) != getattr(default, name), name


def test_defaults_of_the_command_line_are_those_of_the_options():
    parsed = cli._options(cli.parse(["--source", "s", "--out", "o"]))
    assert parsed == IngestOptions(source="s", out="o")


def test_native_rate():
    arguments = cli.parser().parse_args(["--source", "s", "--out", "o", "--fps", "native"])
    assert arguments.fps is None


def test_help_shows_examples_and_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "examples:" in text and "Exit code" in text
    actions = [a for a in cli.parser()._actions if not isinstance(a, argparse._HelpAction)]
    for action in actions:
        assert action.help and action.option_strings[-1] in text


def test_quiet_says_nothing_but_the_result(main, videos):
    code, out, err = main("--source", videos, "--quiet")
    assert code == 0 and err == "" and "classes 2" in out


def test_too_many_bad_files(main, videos, tmp_path):
    (videos / "run" / "bad.mp4").touch()
    code, out, err = main("--source", videos, "--max-bad", "0.1")
    assert code == 1
    assert "20.0% of the rows were rejected, more than --max-bad 10.0%" in err
    assert "complete and usable" in err and "rejected 1 (20.0%): open 1" in out
    assert verify(str(tmp_path / "out"), 0, quiet=True)[0] == []
    assert main("--source", videos, "--max-bad", "0.2")[0] == 0


def test_nothing_but_bad_files(main, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path,label\nnowhere.mp4,a\n")
    code, _, err = main("--source", table)
    assert code == 1 and "every row was rejected" in err and "usable" not in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--source", "none"], "none: no such file or folder"),
        (["--source", "videos", "--quality", "0"], "--quality: found 0, expected 1 to 100"),
        (["--source", "videos", "--columns", "path"], "--columns: found 'path', expected OURS"),
    ],
)
def test_wrong_use_is_one_line(main, monkeypatch, tmp_path, videos, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    code, out, err = main(*arguments)
    assert code == 2 and out == ""
    assert complaint in err and err.count("\n") == 1 and "Traceback" not in err


def test_other_options_are_refused(main, videos):
    main("--source", videos)
    code, _, err = main("--source", videos, "--quality", "80", "--short-side", "32")
    assert code == 2
    assert "--short-side: 256 then, 32 now" in err and "--quality: 90 then, 80 now" in err


def test_notes_about_the_source_are_shown(main, videos):
    (videos / "readme.txt").touch()
    _, _, err = main("--source", videos)
    assert "note: ignored 1 files that are not videos (1 .txt)" in err
