"""`ivj COMMAND`: the commands of both packages by one name."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib

import pytest

from internvideo_jax.__main__ import COMMANDS, LIBRARIES, main
from tests.conftest import ROOT


def test_the_script_is_installed():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"ivj": "internvideo_jax.__main__:main"}


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in shown and command.does in shown
    assert main([]) == 2 and capsys.readouterr().out == shown


def test_the_versions_of_what_is_installed(capsys):
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("internvideo_jax ") and lines[1].startswith("Python 3.")
    assert [line.split()[0] for line in lines[2:]] == list(LIBRARIES)


def test_a_command_that_does_not_exist_is_named_with_its_neighbour(capsys):
    assert main(["trian"]) == 2
    assert "error: unknown command 'trian': did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main(name):
    spec = importlib.util.find_spec(COMMANDS[name].module)
    assert spec and spec.origin
    with open(spec.origin, encoding="utf-8") as file:
        text = file.read()
    # It is imported and its `main` called, or it is started by itself, as launchers do.
    assert re.search(r"^def main\(|import main$", text, re.M)
    assert '\nif __name__ == "__main__":\n' in text


@pytest.mark.parametrize("name", ["extract", "serve", "data", "launch"])
def test_a_command_says_what_it_is_called(command, name):
    done = command("internvideo_jax", name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: ivj {name}" in done.stdout


def test_the_exit_code_of_a_command_is_that_of_ivj(command):
    done = command("internvideo_jax", "extract")
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert command("internvideo_jax", "data", "verify", "nowhere").returncode == 2


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"]], ids=" ".join)
def test_a_command_whose_reader_has_gone_ends_quietly(words):
    """As of `ivj --help | head -1`, whose help stays in a buffer until the interpreter ends."""
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as gone:
        gone.wait()
        done = subprocess.run(
            [sys.executable, "-m", "internvideo_jax", *words],
            cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": ""},
            stdout=gone.stdin, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")
