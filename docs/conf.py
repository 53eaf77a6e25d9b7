"""The site: `make docs` builds it strictly, from these pages, the docstrings and the notebooks."""

from __future__ import annotations

import re
from typing import Any

from pygments.lexers.special import TextLexer

from internvideo_jax import __version__

project = "internvideo_jax"
copyright = "the authors of internvideo_jax, Apache-2.0"
release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}
html_show_sourcelink = False
smartquotes = False  # two hyphens are an option of a command

# Headings can be linked to as on the pages of a repository; a link that leads nowhere is a warning.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# Every notebook runs once, in an empty folder, with the command `ivj` as a user has it.
nb_execution_mode = "force"  # make docs NOTEBOOKS=off: as they are stored
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
copybutton_prompt_text = "$ "

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

SECTION = re.compile(r" *(Args|Arguments|Attributes|Returns|Raises|Yields|Example|Examples):$")


def as_restructured_text(lines: list[str]) -> list[str]:
    """A docstring as the packages have it: plain text, with `code` and indented programs."""
    found: list[str] = []
    inside = False  # a section such as `Args:`, in which indentation means something else
    announced = False  # a program, by the docstring itself
    listed = False  # in an item of a list, whose further lines are indented too
    before = 0  # indentation of the last line of text
    literal = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip():
            if indent == 0:
                inside = bool(SECTION.match(line))
                listed = line.startswith(("- ", "* ")) or line[:1].isdigit()
            if not inside and not literal and not listed and indent >= before + 2:
                found += [] if announced else ["", "::", ""]
                literal = True
            elif literal and indent <= before:
                literal = False
                found.append("")
            if not literal:
                before, announced = indent, line.endswith("::")
        found.append(line if literal else _escaped(line))
    return found


def _escaped(line: str) -> str:
    """`code` as reStructuredText has it, and nothing else that means something there."""
    parts = line.replace("``", "`").split("`")
    if len(parts) % 2 == 0:
        return line.replace("`", r"\`")
    for number, part in enumerate(parts):
        if number % 2:  # between two marks
            behind = parts[number + 1][:1]
            parts[number] = f"``{part}``" + ("\\ " if behind.isalnum() else "")
        else:
            parts[number] = re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", part)
    return "".join(parts)


def setup(app: Any) -> None:
    """Docstrings are brought into form before napoleon reads their sections."""
    app.add_lexer("csv", TextLexer)

    def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        lines[:] = as_restructured_text(lines)

    def link(app: Any, page: str, text: list[str]) -> None:
        # Its page in the site; elsewhere the file in the repository is the better place.
        text[0] = text[0].replace("](../CONTRIBUTING.md", "](contributing.md")

    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("source-read", link)
