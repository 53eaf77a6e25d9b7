"""Which extras of the package a job needs: named ones, and those that its paths and recipe ask for.

    python -m internvideo_jax.launch.extras tpu remote,text

prints what to install, for a script: `tpu,remote,text`.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipelines.limits import suggest

PACKAGE = "internvideo-jax"
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"  # in a checkout
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(.?)")
# Of paths; None: nothing beside the package itself.
SCHEMES = {
    "gs": "remote",
    "gcs": "remote",
    "s3": "remote",
    "s3a": "remote",
    "http": "remote",
    "https": "remote",
    "file": None,
    "hf": None,
    "docker": None,
    "clip": None,
    "bert": None,
}
ENDINGS = {".parquet": "parquet", ".pth": "torch", ".pt": "torch"}
TEXT = re.compile(r"(clip|bert)(:|$)")  # values of config.data.tokenizer
OF_TARGET = ("tpu", "cuda")  # what jax computes on; a launcher knows


def known_extras() -> list[str]:
    """The extras of this checkout, else of the installed package."""
    if PROJECT.is_file():
        return sorted(tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"])
    return sorted(importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or [])


def parse_extras(text: str) -> list[str]:
    """`remote,text` -> ["remote", "text"].

    Raises:
      ValueError: a name that is no extra.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = known_extras()
    for name in names:
        if name not in known:
            raise ValueError(f"--extras={text}: {name!r} is no extra: {suggest(name, known)}")
    return names


def needed(values: Iterable[tuple[str, object]]) -> dict[str, str]:
    """extra -> the first (name, value) that asks for it.

    Args:
      values: names of flags and fields with what they hold; downloads by name or address
        (`init_from`) need no extra.

    Raises:
      ValueError: a URL with one slash, which would be taken for a folder.
    """
    found: dict[str, str] = {}
    for name, value in values:
        if not isinstance(value, str):
            continue
        if match := SCHEME.search(value):
            scheme, slashes, _ = match.groups()
            if slashes == "/" and scheme in SCHEMES and SCHEMES[scheme]:
                raise ValueError(
                    f"{name}={value}: expected two slashes, {scheme}://..., in an address"
                )
            own = name.endswith(("init_from", "checkpoint")) and scheme in ("http", "https")
            if slashes == "//" and not own and (extra := SCHEMES.get(scheme)):
                found.setdefault(extra, f"{name}={value}")
        extra = ENDINGS.get(Path(value).suffix)
        if extra:
            found.setdefault(extra, f"{name}={value}")
        if name.endswith("tokenizer") and TEXT.match(value):
            found.setdefault("text", f"{name}={value}")
        if name.endswith("source") and value.startswith("tfds:"):
            found.setdefault("tfds", f"{name}={value}")
        if name.endswith("runner") and value == "beam":
            found.setdefault("beam", f"{name}={value}")
    return found


def joined(target: str, *groups: Iterable[str]) -> str:
    """`tpu,remote`: the extra of a target, if any, then all others once, in order."""
    names = dict.fromkeys(name for group in groups for name in group)
    return ",".join([*([target] if target else []), *(name for name in names if name != target)])


def flag_values(words: Sequence[str]) -> list[tuple[str, str]]:
    """(--flag, value) of a command line, in both spellings."""
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            found.append((name, value if equals else "" if following[:1] == "-" else following))
    return found


def main() -> int:
    """Prints the extras of a target and of a list, joined; 2 for one that does not exist."""
    if len(sys.argv) != 3:
        print("usage: python -m internvideo_jax.launch.extras TARGET EXTRAS", file=sys.stderr)
        return 2
    try:
        print(joined(sys.argv[1], parse_extras(sys.argv[2])))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
