"""What docs/expect.md promises: each page, command and test that it names is there."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from functools import cache

import pytest

from internvideo_jax.commands import COMMANDS
from internvideo_jax.config import TrainConfig
from tests.docs.pages import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "expect.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+?) \| (.+?) \| \[.+?\]\((.+?)\) \| `(.+?)` \| `(.+?)` \|$", re.MULTILINE)
ROWS = {row[0]: row[2:] for row in ROW.findall(PAGE)}
# Words after `ivj` that a command itself reads.
PARTS = {
    "data": "data_pipelines/__main__.py",
    "weights": "internvideo_jax/weights/__main__.py",
}


def test_every_line_of_the_table_is_read():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(lines) - 1 >= 30  # all but the heading


@pytest.mark.parametrize("row", ROWS)
def test_what_is_promised_is_there(row):
    page, command, test = ROWS[row]
    assert anchored(page), page
    assert known(command), command
    assert there(test), test


def anchored(link: str) -> bool:
    """Whether a page, and the heading on it, exist."""
    name, _, place = link.partition("#")
    text = (DOCS / name).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return not place or place in slugs


def known(command: str) -> bool:
    """Whether what stands there can be typed."""
    first, *words = command.split()
    makefile = (ROOT / "Makefile").read_text()
    if first == "make":
        return all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words)
    if first.startswith("scripts/"):
        return (ROOT / first).is_file()
    if first.startswith("--config."):
        return field(first.removeprefix("--config."))
    if first != "ivj":
        return command in ("import internvideo_jax", "docker build")
    if words[0] in PARTS and words[1:]:
        return f'"{words[1]}"' in (ROOT / PARTS[words[0]]).read_text()
    return words[0] in COMMANDS or words == ["--version"]


def field(path: str) -> bool:
    """Whether a config has this field."""
    first, _, rest = path.partition(".")
    names = {each.name: each for each in dataclasses.fields(TrainConfig)}
    if not rest or first not in names:
        return first in names
    inner = typing.get_type_hints(TrainConfig)[first]
    return rest in {each.name for each in dataclasses.fields(inner)}


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def there(test: str) -> bool:
    """Whether a test exists, and something that continuous integration runs collects it."""
    if test.startswith("make "):
        return test.removeprefix("make ") in (ROOT / ".ci/run").read_text().split()
    path, _, name = test.partition("::")
    return (ROOT / path).is_file() and name in functions(path)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (anchored, "start.md#nowhere"), (known, "ivj trian"), (known, "ivj data verfy"),
        (known, "make tset"), (known, "scripts/tpu.sh"), (known, "--config.lora.rnak"),
        (there, "tests/docs/test_expect.py::test_nothing"), (there, "make nothing"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_found(check, wrong):
    assert not check(wrong)
