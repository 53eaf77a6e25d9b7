"""What README and docs show to be typed, taken from their fenced blocks."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# One guide for several readers: what its first pages ingest, the later ones read.
DATA_GUIDE = tuple(
    f"data{part}.md"
    for part in ("", "-ingest", "-large", "-content", "-mixtures", "-reading", "-faults", "-host")
)
FENCE = re.compile(r"^ *```(\w*) *\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing that a reader of a page does.

    Attributes:
      page: file name of the page.
      line: where it stands, from 1.
      language: `bash`, `python` or another word behind the fence.
      text: a command of one line, or a whole program.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def words(self) -> list[str]:
        """A command as the shell would split it, without variables set in front of it."""
        words = shlex.split(self.text)
        while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
            del words[0]
        return words

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def steps(path: Path, languages: tuple[str, ...] = ("bash", "python")) -> list[Step]:
    """The steps of a page, in its order; a command over several lines is one."""
    text = path.read_text(encoding="utf-8")
    found = []
    for block in FENCE.finditer(text):
        language, body = block.groups()
        line = text.count("\n", 0, block.start(2)) + 1
        if language not in languages:
            continue
        if language != "bash":
            found.append(Step(path.name, line, language, body))
            continue
        found += [Step(path.name, line + at, language, one) for at, one in commands(body)]
    return found


def commands(block: str) -> list[tuple[int, str]]:
    """(line in the block, command) without comments, continued lines joined."""
    found: list[tuple[int, str]] = []
    pending, at = "", 0
    for number, raw in enumerate(block.splitlines()):
        line = raw.strip()
        if not pending:
            if not line or line.startswith("#"):
                continue
            at = number
        if line.endswith("\\"):
            pending += line.removesuffix("\\").rstrip() + " "
            continue
        found.append((at, _without_remark(pending + line)))
        pending = ""
    if pending:
        raise ValueError(f"a block ends with a backslash: {pending}")
    return found


def _without_remark(command: str) -> str:
    """The command up to a # that no quotation marks enclose."""
    for match in re.finditer(r"\s+#\s", command):
        before = command[: match.start()]
        if before.count("'") % 2 == 0 and before.count('"') % 2 == 0:
            return before
    return command
