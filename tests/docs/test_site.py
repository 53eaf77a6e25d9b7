"""What the site says beside its commands: tables, quoted messages, contents, references, links."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator

import pytest

from scripts import check_site
from tests.docs import generated
from tests.docs.pages import PAGES, ROOT
from tests.internvideo_jax.models_page import between

DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
HOLE = "\0"  # what stands for a name or number in a message


def test_the_tables_follow_from_the_code():
    """After a wanted change: python -m tests.docs.generated, and look at the diff."""
    for page, tables in generated.parts().items():
        text = (DOCS / page).read_text(encoding="utf-8")
        for name, lines in tables.items():
            found = between(name).search(text)
            assert found, f"docs/{page} has no part {name!r}"
            assert found[2] == lines + "\n", name


def messages() -> Iterator[str]:
    """Every text in the code of the packages; a hole for each value put into it."""
    for package in ("internvideo_jax", "data_pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else HOLE
                             for part in node.values]  # fmt: skip
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"\{\w*\}", HOLE, node.value)


def test_messages_that_are_quoted_are_said_by_the_code():
    page = (DOCS / "symptoms.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) >= 35
    said = list(messages())
    for message in quoted:
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert any(re.search(pattern, text, re.DOTALL) for text in said), message


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^([\w/-]+)$", index, re.MULTILINE))
    pages = [*DOCS.glob("*.md"), *REFERENCE, *NOTEBOOKS]
    expected = {path.relative_to(DOCS).with_suffix("").as_posix() for path in pages} - {"index"}
    assert named == expected


def modules() -> list[str]:
    """Those whose public names the reference shows."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE)
    return re.findall(r"^\.\. automodule:: (\S+)$", pages, re.MULTILINE)


@pytest.mark.parametrize("name", modules())
def test_everything_in_the_reference_has_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__
    bare = [
        thing for thing, value in vars(module).items()
        if not thing.startswith("_") and getattr(value, "__module__", "") == name
        and (inspect.isclass(value) or inspect.isfunction(value))
        for thing in undocumented(thing, value)
    ]  # fmt: skip
    assert not bare


def undocumented(name: str, value: object) -> Iterator[str]:
    if not own_doc(value):
        yield name
    if inspect.isclass(value):
        for member, function in vars(value).items():
            plain = isinstance(function, (property, staticmethod, classmethod))
            if member.startswith("_") or not (plain or inspect.isfunction(function)):
                continue
            # That of what it overrides counts, and what the docstring of the class says of it.
            said = inspect.getdoc(getattr(value, member))
            if not said and not re.search(rf"\b{member}\b", own_doc(value)):
                yield f"{name}.{member}"


def own_doc(value: object) -> str:
    """A dataclass without a docstring gets its signature as one."""
    doc = inspect.getdoc(value) or ""
    return "" if doc.startswith(f"{getattr(value, '__name__', '')}(") else doc


def test_notebooks_are_stored_without_what_they_printed():
    assert len(NOTEBOOKS) == 4
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert sum(cell["cell_type"] == "markdown" for cell in cells) >= 4
        for cell in cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None
            for target in re.findall(r"\]\(([^)#\s]+)", "".join(cell["source"])):
                assert target.startswith("http") or (path.parent / target).exists(), target


def test_a_link_of_the_site_that_leads_nowhere_is_found(tmp_path, capsys):
    (tmp_path / "a.html").write_text("<h1 id='top'><a href='b.html#part'>b</a></h1>")
    (tmp_path / "b.html").write_text(
        "<a id='part' href='a.html#top'>a</a> <a href='https://example.org/x'>x</a>"
    )
    assert check_site.main([str(tmp_path)]) == 0
    (tmp_path / "b.html").write_text("<a href='a.html#end'>a</a> <img src='c.png'>")
    assert check_site.main([str(tmp_path)]) == 1
    shown = sorted(capsys.readouterr().out.splitlines()[1:])
    assert shown == ["a.html: b.html#part", "b.html: a.html#end", "b.html: c.png"]


def test_the_pages_that_are_read_are_those_of_the_site():
    assert {path for path in PAGES if path.parent == DOCS} == set(DOCS.glob("*.md"))
