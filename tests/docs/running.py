"""How a documented command is run: through its real command line, in small, or dry.

In small: a recipe gets its option `smoke` (the smallest model of its kind, three steps), so every
flag of the command is read and used, on data that a test can afford. Dry: what needs hardware, a
cloud, an installation or the reference's code is checked as far as it can be without (flags exist,
recipes resolve, extras and targets are there), and listed at the end of the session.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import Run, environment
from tests.docs.pages import ROOT, Step

BASE = ("--config=configs/videomae/pretrain.py:size=tiny", "--config.data.train=shards/")
# Beside a command of the page, such as recipes and scripts it names by path.
CHECKOUT = ("configs", "scripts", "benchmarks", "tests")
MINUTES = 3
IVJ = "internvideo_jax"  # whose __main__ is what `ivj` starts


class Undocumented(AssertionError):
    """A command that does not do what its page says."""


@dataclasses.dataclass
class Reader:
    """Somebody who types a page's commands in a folder.

    Attributes:
      folder: where, with the files that the page takes for granted.
      command: runs `python -m MODULE`.
      replace: word on the page -> what stands for it here (FILE, CONFIG, ...).
      dry: what could only be looked at, each with the reason.
    """

    folder: Path
    command: Run
    replace: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dry: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        for name in CHECKOUT:
            (self.folder / name).symlink_to(ROOT / name)

    def do(self, step: Step) -> str:
        """Runs or looks at one step; its output.

        Raises:
          Undocumented: it did not end with 0, or nobody here knows how to run such a command.
        """
        if step.language == "python":
            named = re.match(r"# (\w+\.py)\n", step.text)  # a file that later commands read
            program = self.folder / (named[1] if named else "program.py")
            program.write_text(self._put(step.text))
            return self._ended(step, self.command(str(program), cwd=self.folder))
        words = dataclasses.replace(step, text=self._put(step.text)).words
        for begins, how in KINDS.items():
            if words[: len(begins)] == list(begins):
                return how(self, step, words[len(begins) :])
        if words[0].startswith("--config"):
            return self.ivj(step, ["train", *BASE, f"--workdir=runs/line-{step.line}", *words])
        if words[0].startswith("scripts/"):
            return self.rehearsed(step, words)
        raise Undocumented(f"{step}: no test runs such a command; see tests/docs/running.py")

    def _put(self, text: str) -> str:
        for name, value in self.replace.items():
            text = text.replace(name, value)
        return text

    def _ended(self, step: Step, done: subprocess.CompletedProcess[str]) -> str:
        if done.returncode:
            raise Undocumented(
                f"{step}\nended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
            )
        return done.stdout

    def module(self, step: Step, words: list[str]) -> str:
        """`python -m MODULE ...`"""
        name, *arguments = words
        return self._ended(step, self.command(name, *arguments, cwd=self.folder))

    def ivj(self, step: Step, words: list[str]) -> str:
        """`ivj COMMAND ...`, in small."""
        name, *arguments = words
        if name == "launch":
            return self.launched(step, arguments)
        if name == "serve":
            return self.served(step, words)
        arguments, devices = in_small(name, arguments)
        done = self.command(IVJ, name, *arguments, devices=devices, cwd=self.folder)
        if "the TPU compiler cannot be loaded" in done.stderr:
            self.dry.append(f"{step} (needs the TPU compiler: up to loading it; make test-aot)")
            return done.stdout
        absent = [file for file in published(arguments) if not (self.folder / file).exists()]
        if absent and done.returncode == 2 and any(file in done.stderr for file in absent):
            self.dry.append(f"{step} (reads {', '.join(absent)}: up to opening it)")
            return done.stdout
        return self._ended(step, done)

    def launched(self, step: Step, arguments: list[str]) -> str:
        """A job whose processes are interpreters of their own."""
        at = arguments.index("--") + 1
        numbers = [int(word.partition("=")[2]) for word in arguments[:at] if "process" in word]
        inner, _ = in_small("train", arguments[at + 2 :], math.prod(numbers))
        command = [sys.executable, "-m", IVJ, "launch", *arguments[: at + 2], *inner]
        return self._ended(step, self._process(command))

    def rehearsed(self, step: Step, words: list[str]) -> str:
        """A script of scripts/ that would rent machines: only with --dry-run."""
        if "--dry-run" not in words:
            raise Undocumented(f"{step}: a command that rents machines is shown with --dry-run")
        self.dry.append(f"{step} (rents machines: its own --dry-run)")
        return self._ended(step, self._process(words))

    def program(self, step: Step, words: list[str]) -> str:
        """`python FILE ...`"""
        if words[0].startswith("scripts/"):
            return self.rehearsed(step, [sys.executable, *words])
        file, *arguments = words
        if not file.startswith("benchmarks/"):
            raise Undocumented(f"{step}: no test runs such a command")
        shown = self.command(str(ROOT / file), "--helpfull", cwd=self.folder)
        known = set(re.findall(r"--(?:\[no\])?([a-z_]+)", shown.stdout))
        for word in arguments:
            name = word.split("=")[0].removeprefix("--")
            if "." not in name and name not in known:
                raise Undocumented(f"{step}: {file} has no option --{name}")
            if name == "config":
                recipe(word.partition("=")[2])
        self.dry.append(f"{step} (a measurement of minutes: options and recipe)")
        return shown.stdout

    def tested(self, step: Step, words: list[str]) -> str:
        """`python -m pytest FILE ...`"""
        (file,) = [word for word in words if word.endswith(".py")]
        if file not in (ROOT / "Makefile").read_text():
            raise Undocumented(f"{step}: no target of the Makefile runs {file}")
        self.dry.append(f"{step} (a target of the Makefile runs it)")
        return ""

    def made(self, step: Step, words: list[str]) -> str:
        """`make TARGET`: continuous integration runs it."""
        for target in words:
            if target not in re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M):
                raise Undocumented(f"{step}: the Makefile has no target {target}")
            if not re.search(rf"\b{target}\b", (ROOT / ".ci/run").read_text()):
                raise Undocumented(f"{step}: continuous integration does not run make {target}")
        self.dry.append(f"{step} (continuous integration runs it)")
        return ""

    def installed(self, step: Step, words: list[str]) -> str:
        """`pip install PACKAGE[EXTRAS]`: the extras exist."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for word in words:
            package, _, extras = word.rstrip("]").partition("[")
            if package not in (".", "-e", project["name"]):
                raise Undocumented(f"{step}: installs {package}")
            for extra in filter(None, extras.split(",")):
                if extra not in project["optional-dependencies"]:
                    raise Undocumented(f"{step}: there is no extra {extra}")
        self.dry.append(f"{step} (an installation: the extras exist)")
        return ""

    def imaged(self, step: Step, words: list[str]) -> str:
        """`docker build` and `docker run`: the arguments exist; a command in an image runs here."""
        text = (ROOT / "Dockerfile").read_text()
        if words[0] == "run":
            return self.ivj(step, words[words.index("ivj") + 1 :])
        flags = itertools.pairwise(words)
        given = [word.partition("=") for before, word in flags if before == "--build-arg"]
        for name, _, value in given:
            if not re.search(rf"^ARG {name}\b", text, re.MULTILINE):
                raise Undocumented(f"{step}: the Dockerfile has no argument {name}")
            if name == "EXTRAS":
                self.installed(step, [f".[{value}]"])
        self.dry.append(f"{step} (needs Docker: its arguments exist)")
        return ""

    def served(self, step: Step, words: list[str]) -> str:
        """A server, asked for its page once and stopped."""
        with serving(self.folder, words) as url, urllib.request.urlopen(url, timeout=60) as page:
            text = page.read().decode()
        if "<html" not in text:
            raise Undocumented(f"{step}: served {text[:300]}")
        return text

    def fetched(self, step: Step, words: list[str]) -> str:
        """`curl`: from the server that the page started before."""
        started = self.replace["SERVER"].split("\0")
        with serving(self.folder, started) as url:
            place = url.removeprefix("http://").rstrip("/")
            words = [word.replace("localhost:8000", place) for word in words]
            until = time.monotonic() + 60 * MINUTES
            while True:  # the page is there at once, answers when the videos are read
                done = self._process(["curl", "--fail-with-body", *words])
                if done.returncode != 22 or time.monotonic() > until:
                    return self._ended(step, done)
                time.sleep(0.5)

    def _process(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(words),
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
        )


def published(words: Sequence[str]) -> list[str]:
    """Files of the authors that a command reads."""
    return [file for word in words for file in re.findall(r"[^=\s]+\.pth$", word)]


def in_small(command: str, words: Sequence[str], devices: int = 1) -> tuple[list[str], int]:
    """The words with their recipe in small, and the number of devices, more if its mesh asks."""
    found = []
    names = [word.split("=")[0].removeprefix("--") for word in words]
    for word in words:
        name, _, value = word.partition("=")
        if name == "--config":
            path, _, options = value.partition(":")
            if "smoke" not in options.split(","):
                options = ",".join(filter(None, (options, "smoke")))
            word = f"--config={path}:{options}"
        elif name.startswith("--config.mesh.") and value != "-1":
            devices *= int(value)
        found.append(word)
    if command == "train":
        if "config.steps" in names:
            found.append("--config.steps=3")
        if "config.optim.warmup_steps" in names:
            found.append("--config.optim.warmup_steps=1")
        if devices > 1 or "config.data.global_batch" in names:
            found.append(f"--config.data.global_batch={max(4, devices)}")
    if command == "adapt":
        found = [word for word in found if not word.startswith(("--minutes", "--steps", "--seeds"))]
        found += ["--steps=3", "--config.optim.warmup_steps=1"]
    if command == "reference" and "list" not in names:
        found.append("--set=steps=6")  # which begin as all do: the warm-up is the same
    if command == "synthetic":
        found += ["--train=24", "--test=8"]
    return found, devices


@functools.cache
def recipe(text: str) -> object:
    """The resolved recipe of `configs/x/y.py:options`."""
    from tests.recipes import shipped

    path, _, options = text.partition(":")
    return shipped.module(path.removeprefix("configs/")).get_config(options)


@contextmanager
def serving(folder: Path, words: Sequence[str]) -> Iterator[str]:
    """Runs `ivj WORDS` on a free port until the caller is done; the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", IVJ, *words, f"--port={port}"],
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + 60 * MINUTES
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise Undocumented(f"no server: {(folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60 * MINUTES)  # a program that is being compiled cannot be stopped


KINDS: dict[tuple[str, ...], Callable[[Reader, Step, list[str]], str]] = {
    ("python", "-m", "pytest"): Reader.tested,
    ("python", "-m"): Reader.module,
    ("ivj",): Reader.ivj,
    ("python",): Reader.program,
    ("make",): Reader.made,
    ("pip", "install"): Reader.installed,
    ("curl",): Reader.fetched,
    ("docker",): Reader.imaged,
}
