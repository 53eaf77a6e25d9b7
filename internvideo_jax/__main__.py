"""The command line of both packages: `ivj COMMAND ...`, or `python -m internvideo_jax COMMAND ...`.

Every command is also a module that can be started by itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from data_pipelines.commands.ending import quietly
from data_pipelines.commands.exit_codes import ExitCode
from data_pipelines.limits import suggest


class Command(NamedTuple):
    """What a word after `ivj` starts."""

    module: str  # whose `main()` reads sys.argv
    does: str
    words: tuple[str, ...] = ()  # that come before those of the user


COMMANDS = {
    "ingest": Command("data_pipelines.ingest.__main__", "videos, images, datasets -> shards"),
    "data": Command("data_pipelines.__main__", "inspect, verify, measure, repair, choose shards"),
    "synthetic": Command("data_pipelines.synthetic", "render the built-in world of videos"),
    "train": Command("internvideo_jax.train", "pre-train, fine-tune or probe"),
    "evaluate": Command("internvideo_jax.evaluate", "published tests of a run or a weight file"),
    "predict": Command("internvideo_jax.offline.predict", "the likeliest classes of video files"),
    "extract": Command("internvideo_jax.offline.extract", "features of sliding windows"),
    "score": Command("internvideo_jax.offline.score", "similarity of clips and their captions"),
    "teach": Command("internvideo_jax.offline.teach", "targets of frozen teachers, kept as shards"),
    "search": Command("internvideo_jax.search.__main__", "videos of a folder by text", ("search",)),
    "serve": Command("internvideo_jax.search.__main__", "the same as a web page", ("serve",)),
    "weights": Command("internvideo_jax.weights.__main__", "published files: list, import, export"),
    "check": Command("internvideo_jax.compile_check.__main__", "what a slice needs, before a run"),
    "launch": Command("internvideo_jax.launch.processes", "processes, started again when one dies"),
    "reference": Command(
        "internvideo_jax.reference.__main__", "a small run of a recipe beside its stored curves"
    ),
    "report": Command("internvideo_jax.telemetry.report", "one page about one or several runs"),
}


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
            "\n".join(("usage: ivj COMMAND ...", "", *lines, "", "ivj COMMAND --help says more."))
        )
        return ExitCode.GOOD if name else ExitCode.USAGE
    print(f"error: unknown command {name!r}: {suggest(name, COMMANDS)}", file=sys.stderr)
    return ExitCode.USAGE


if __name__ == "__main__":
    sys.exit(main())
