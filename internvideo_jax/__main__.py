"""The command line of both packages: `ivj COMMAND ...`, or `python -m internvideo_jax COMMAND ...`.

Every command is also a module that can be started by itself.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Sequence

from data_pipelines.commands.ending import quietly
from data_pipelines.commands.exit_codes import ExitCode
from data_pipelines.limits import suggest
from internvideo_jax import __version__
from internvideo_jax.commands import COMMANDS

LIBRARIES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "grain", "numpy", "av")


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Starts the command that the first word names; what it returns is the exit code."""
    return quietly(lambda: _start(arguments))


def _start(arguments: Sequence[str] | None) -> int | None:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in COMMANDS:
        command = COMMANDS[name]
        sys.argv[:] = [f"ivj {name}", *command.words, *rest]
        return importlib.import_module(command.module).main()
    if name in ("", "-h", "-?", "-help", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {word.ljust(width)}  {each.does}" for word, each in COMMANDS.items()]
        print(
            "\n".join(
                (
                    "usage: ivj COMMAND ...",
                    "",
                    *lines,
                    "",
                    "ivj COMMAND --help says more, ivj --version what is installed.",
                )
            )
        )
        return ExitCode.GOOD if name else ExitCode.USAGE
    if name in ("version", "-version", "--version"):
        print(versions())
        return ExitCode.GOOD
    print(f"error: unknown command {name!r}: {suggest(name, COMMANDS)}", file=sys.stderr)
    return ExitCode.USAGE


def versions() -> str:
    """Of what is installed, for a question or a report of a fault: no library is imported."""
    found = [f"internvideo_jax {__version__}", f"Python {platform.python_version()}"]
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{library} {importlib.metadata.version(library)}")
    return "\n".join(found)


if __name__ == "__main__":
    sys.exit(main())
