"""Arguments that several commands have."""

import argparse
import difflib
import os
import re
from collections.abc import Iterator
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Whose complaints are one line, with the option that was meant; the usage is in its help."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with code 2."""
        hint = ""
        if found := re.match(r"unrecognized arguments:.*?(--[\w-]+)", message):
            near = difflib.get_close_matches(found[1], set(self.options()), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
        self.exit(2, f"error: {message}{hint}\n")

    def options(self) -> Iterator[str]:
        """The long options of this command and of those below it."""
        for action in self._actions:
            yield from (name for name in action.option_strings if name.startswith("--"))
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    yield from command.options()


def default_workers() -> int:
    """Cores this process may use, which in a container is often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def add_workers(parser: argparse._ActionsContainer, alone: str) -> None:
    """--workers: processes; `alone` is what this one does with 0."""
    parser.add_argument(
        "--workers",
        metavar="K",
        type=int,
        default=default_workers(),
        help=f"processes; 0 {alone} in this one (default: %(default)s, the cores available)",
    )


def add_max_bad(parser: argparse._ActionsContainer, bad: str) -> None:
    """--max-bad: the share of rows up to which a run counts as good; `bad` ends the help."""
    parser.add_argument(
        "--max-bad",
        metavar="SHARE",
        type=float,
        default=0.01,
        help=f"exit with 1 if {bad} (default: %(default)s)",
    )


def add_quiet(parser: argparse._ActionsContainer) -> None:
    """--quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
