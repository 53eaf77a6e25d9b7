"""Compile checks in processes of their own, remembered in a file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from internvideo_jax.compile_check.report import versions
from internvideo_jax.config import TrainConfig, as_plain

# Flags that the search replaces or that do not change the program.
REPLACED = ("mesh", "batch", "remat", "json", "price")


def default_path() -> Path:
    """In the cache folder of the user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "internvideo_jax" / "compile_check.json"


def passed_on(arguments: Sequence[str]) -> list[str]:
    """The command line of this process without the search and without what it replaces.

    Takes both `--name=value` and `--name value`.
    """
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
            continue
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and (name in REPLACED or name.startswith("search")):
            # --search alone is a switch; its options have values.
            skip = not equals and name not in ("search", "search_batch")
            continue
        kept.append(argument)
    return kept


def key_of(config: TrainConfig, topology: str, classes: int, fast: bool) -> str:
    """Digest of what decides the program: config, slice, versions and the sources of this package.

    The number of records is left out: it changes the learning rate's constants only.
    """
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    parts = [as_plain(config), topology, classes, fast, versions(), source.hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class CompileCache:
    """Facts of compiled programs by key, in one JSON file.

    A file that cannot be read is empty, and an entry that is not as it was written is none.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            found = {}
        self.known: dict[str, Any] = found if isinstance(found, dict) else {}

    def get(self, key: str) -> dict[str, Any] | None:
        """What is known of a program; None for one that is new, or damaged."""
        match self.known.get(key):
            case {"facts": dict(facts), "sha256": str(digest)} if digest == _digest(key, facts):
                return facts
        return None

    def put(self, key: str, facts: dict[str, Any]) -> None:
        """Writes the file anew, in one move, so that another search never reads half of it."""
        facts = json.loads(json.dumps(facts))  # as it will be read
        self.known[key] = {"facts": facts, "sha256": _digest(key, facts)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
        try:
            with open(handle, "w") as file:
                json.dump(self.known, file)
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise


def _digest(key: str, facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([key, facts], sort_keys=True).encode()).hexdigest()


def check_apart(arguments: Sequence[str]) -> dict[str, Any]:
    """Runs compile_check in its own process, whose memory is given back; its facts.

    Raises:
      RuntimeError: it ended without any, with its message.
    """
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.json"
        command = [sys.executable, "-m", "internvideo_jax.compile_check", *arguments]
        done = subprocess.run([*command, f"--json={facts}"], capture_output=True, text=True)
        if not facts.exists():
            lines = done.stderr.strip().splitlines()
            told = next((line for line in lines if line.startswith("error:")), None)
            raise RuntimeError(told or "\n".join(lines[-5:]) or f"exit code {done.returncode}")
        return json.loads(facts.read_text())
