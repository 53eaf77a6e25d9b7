"""The user guide: every command and program in it is run."""

import json
import re
import shlex
import struct
from pathlib import Path

import pytest

from data_pipelines import __main__ as tools
from data_pipelines import record_index
from data_pipelines.ingest import __main__ as cli
from data_pipelines.ingest.options import Options

from .clips import make_video

GUIDE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


MAIN = {
    "data_pipelines": tools.main,
    "data_pipelines.ingest": lambda arguments: cli.main([*arguments, "--workers", "0"]),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files the guide talks about."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "sit"):
        Path("videos", name).mkdir(parents=True)
        for i in range(2):
            make_video(Path("videos", name, f"{i}.mp4"), 20)
    Path("clips.csv").write_text(blocks("csv")[0])
    Path("captions.jsonl").write_text(blocks("json")[0])
    Path("other.csv").write_text("file,class\nvideos/run/0.mp4,run\nvideos/sit/0.mp4,sit\n")
    return tmp_path


def test_commands_and_program_of_the_guide_work(folder, capsys):
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 7
    for command in commands:
        program, *arguments = shlex.split(command)
        assert [program, arguments[0]] == ["python", "-m"], command
        assert MAIN[arguments[1]](arguments[2:]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for program in blocks("python"):
        exec(compile(program, "docs/data.md", "exec"), {})
    assert "4 ('run', 'sit')" in capsys.readouterr().out


def test_table_of_options_has_the_defaults():
    rows = dict(re.findall(r"^\| `(--[a-z-]+)[^|]*\| ([^|]*) \|", GUIDE, re.MULTILINE))
    default = Options(source="s", out="o")
    for option in ("--short-side", "--quality", "--min-frames", "--max-bad", "--stall-seconds"):
        value = getattr(default, option.strip("-").replace("-", "_"))
        assert float(rows[option]) == value, option


def test_options_named_in_the_guide_exist():
    known = {name for action in cli.parser()._actions for name in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z-]+", GUIDE)) <= known


def test_manifest_example_has_the_fields_of_a_real_one(folder):
    cli.main(["--source", "videos", "--out", "o", "--workers", "0", "--quiet"])
    real = json.loads(Path("o/manifest.json").read_text())
    example = json.loads(blocks("json")[1])

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(value[0])] if isinstance(value, list) else type(value)

    assert shape(example) == shape(real)


def test_index_table_describes_the_header():
    offsets = [int(n) for n in re.findall(r"^\| (\d+) \| (?:u|\d|entries)", GUIDE, re.MULTILINE)]
    assert offsets == [0, 8, 12, 16, 24, 32, 40, 44, 48, 64]
    assert record_index._HEADER.size == 64
    assert struct.calcsize("<8sIIQQQII") == 48
