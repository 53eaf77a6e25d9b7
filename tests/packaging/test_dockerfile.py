"""The Dockerfile, as far as that goes without Docker: what it copies, installs and starts."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(instruction, arguments) of every line, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in found]


def arguments() -> dict[str, str]:
    """Build arguments and their defaults."""
    return dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")


def sent(path: Path) -> bool:
    """Whether .dockerignore lets a path of the checkout into the build."""
    name, kept = path.relative_to(ROOT).as_posix(), True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = [name, *(part for part in name.split("/"))] if "**" in rule else [name]
        above = [str(each) for each in Path(name).parents]
        if any(fnmatch.fnmatch(part, pattern) for part in [*parts, *above[:-1]]):
            kept = rule.startswith("!")
    return kept


def copies() -> list[tuple[list[str], str]]:
    """(sources, target) of what comes from the checkout."""
    found = [shlex.split(rest) for word, rest in instructions() if word == "COPY"]
    return [(words[:-1], words[-1]) for words in found if not words[0].startswith("--from")]


def test_every_instruction_and_argument_is_known():
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    assert {word for word, _ in instructions()} == known
    text = " ".join(rest for word, rest in instructions() if word in ("FROM", "RUN"))
    used = {name for name in re.findall(r"\$\{?([A-Z]+)\}?", text) if name != "PATH"}
    assert used == set(arguments())


def test_what_is_copied_is_there_and_is_sent_to_the_build():
    for sources, _ in copies():
        for source in sources:
            assert (ROOT / source).exists() and sent(ROOT / source), source
    assert sent(ROOT / "internvideo_jax/cli.py")
    for name in ("tests", ".git", ".venv", "docs", "internvideo_jax/__pycache__"):
        assert not sent(ROOT / name), name


def test_extras_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (case,) = [rest for word, rest in instructions() if word == "RUN" and "case" in rest]
    accelerators = re.search(r"cpu\) .*?;; (.*?)\)", case)
    assert accelerators and set(accelerators[1].split(" | ")) <= set(known)
    assert set(arguments()["EXTRAS"].split(",")) <= set(known)


def test_it_does_not_run_as_root():
    words = [word for word, _ in instructions()]
    last = len(words) - words[::-1].index("FROM")
    assert "USER" in words[last:] and words.index("USER") < words.index("CMD")
    assert dict(instructions())["USER"] not in ("root", "0")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_its_commands_as_shellcheck_sees_them():
    script = "#!/bin/sh\n" + "\n".join(rest for word, rest in instructions() if word == "RUN")
    done = subprocess.run(
        ["shellcheck", "--exclude=SC2153,SC2154", "-"],
        input=re.sub(r" +", " ", script), capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "" and done.returncode == 0


def build(folder: Path, accelerator: str) -> subprocess.CompletedProcess[str]:
    """Runs the build stage in `folder`: its own pip lines, on the libraries of this environment."""
    shell, here = [], folder / "build"
    for word, rest in instructions()[: [word for word, _ in instructions()].index("USER")]:
        if word == "RUN" and "useradd" not in rest:
            shell.append(rest)
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, target = shlex.split(rest)
            # A folder's content goes into the target, as Docker copies.
            for one in sources:
                flags = "-aT" if (ROOT / one).is_dir() else "-a"
                shell.append(f"cp {flags} {shlex.quote(str(ROOT / one))} {target}")
        elif word == "WORKDIR":
            shell.append(f"mkdir -p {rest} && cd {rest}")
        elif word == "ENV" and rest.startswith("PATH="):
            shell.append(f"export {rest.partition(' ')[0]}")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path_file = f"/venv/lib/{version}/site-packages/these.pth"
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    shell.insert(1, f"echo {packages} >{path_file}")
    text = "\n".join(shell).replace("/venv", str(folder / "venv")).replace("/build", str(here))
    (folder / "bin").mkdir(exist_ok=True)
    if not (folder / "bin/python").exists():
        (folder / "bin/python").symlink_to(sys.executable)
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "ACCELERATOR": accelerator,
        "EXTRAS": "remote,text",
        "PIP_NO_DEPS": "1",  # the libraries are here already
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        ["sh", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_its_lines_install_a_command_that_runs(tmp_path):
    done = build(tmp_path, "tpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not provide the extra" not in done.stderr
    command = json.loads(dict(instructions())["CMD"])
    (tmp_path / "empty").mkdir()
    path = f"{tmp_path / 'venv/bin'}:/usr/bin:/bin"
    shown = subprocess.run(
        [shutil.which(command[0], path=path), *command[1:]],
        cwd=tmp_path / "empty", env={"PATH": path, "HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0 and "usage: ivj COMMAND" in shown.stdout
    folder = tmp_path / "venv/lib"
    (first,) = folder.glob("*/site-packages/internvideo_jax/__init__.py")
    assert first.read_text() == (ROOT / "internvideo_jax/__init__.py").read_text()
    assert list(folder.glob("*/site-packages/internvideo_jax/configs/videomae/pretrain.py"))
    assert not any(path.is_symlink() for path in folder.glob("*/site-packages/internvideo_jax/*"))


def test_a_wrong_accelerator_is_named(tmp_path):
    (case,) = [rest for word, rest in instructions() if word == "RUN" and "case" in rest]
    done = subprocess.run(
        ["sh", "-ec", case], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "ACCELERATOR": "tpus", "EXTRAS": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "ACCELERATOR=tpus: expected tpu, cuda or cpu\n"
