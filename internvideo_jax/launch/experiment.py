"""An experiment as data: a recipe, overrides, a sweep over them, and the command of every run.

    python -m internvideo_jax.launch.experiment --restarts=3 -- --config=... --workdir=...

prints the command that every worker of a job starts. All launchers take it from here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.limits import suggest
from internvideo_jax.commands import COMMANDS


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a command."""

    name: str  # of its directory below the experiment's, and part of names in a cluster
    workdir: str
    arguments: tuple[str, ...]  # as `command_of` takes them; those of train without its name


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One command, mostly of a recipe, with one or several sets of overrides.

    Each run of a sweep has its own directory below `workdir`; without a sweep the one run has
    `workdir` itself. Where it is given, it becomes --workdir of train or --out of other commands.
    """

    name: str
    config: str  # file of the recipe with its options, as for train; empty for none
    workdir: str  # empty where the command says where its results go
    overrides: Sequence[tuple[str, str]] = ()  # field -> text, the same in every run
    sweep: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    zipped: bool = False  # the i-th values of all fields together, instead of every combination
    command: Sequence[str] = ()  # another command than train, with what all runs give it
    # Cluster systems take them as parts of host names.
    NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")

    def __post_init__(self) -> None:
        if not self.NAME.fullmatch(self.name):
            raise ValueError(
                f"--name={self.name}: expected at most 40 lower-case letters, digits and hyphens, "
                "first a letter, last no hyphen"
            )
        fixed = [field for field, _ in self.overrides if field in self.sweep]
        if fixed:
            raise ValueError(f"{fixed[0]} is both set to one value and swept over; drop one")

    @classmethod
    def from_sets(
        cls,
        name: str,
        config: str,
        workdir: str,
        sets: Sequence[str],
        zipped: bool = False,
        command: Sequence[str] = (),
    ) -> Experiment:
        """From the texts of --set flags; a field with several values is swept over."""
        fields = parse_sweep(sets)
        fixed = [(field, values[0]) for field, values in fields.items() if len(values) == 1]
        sweep = {field: values for field, values in fields.items() if len(values) > 1}
        return cls(name, config, workdir, fixed, sweep, zipped, command)

    def jobs(self) -> list[Job]:
        """The runs, in the order of the sweep.

        Raises:
          ValueError: lists of different lengths for a zipped sweep, two equal runs, or a sweep
            over a command that does not say where its results go.
        """
        name, _ = command_of(self.command)
        if self.sweep and not COMMANDS[name].writes:
            known = [each for each, about in COMMANDS.items() if about.writes]
            raise ValueError(
                f"ivj {name} has no one flag for its results, so its runs would overwrite each "
                f"other; a sweep can run {', '.join(known)}"
            )
        if not self.sweep:
            return [self._job(self.name, self.workdir, {})]
        rows = self.combinations()
        names = [run_name(row) for row in rows]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the sweep has the run {twice[0]} twice; give every value once")
        base = self.workdir.rstrip("/")
        return [
            self._job(name, f"{base}/{name}", row) for name, row in zip(names, rows, strict=True)
        ]

    def combinations(self) -> list[dict[str, str]]:
        """field -> value of every run."""
        fields = list(self.sweep)
        if self.zipped:
            lengths = {field: len(values) for field, values in self.sweep.items()}
            if len(set(lengths.values())) > 1:
                found = ", ".join(f"{field} has {count}" for field, count in lengths.items())
                raise ValueError(f"--zip needs equally many values for every field; {found}")
            tuples: Iterable[tuple[str, ...]] = zip(*self.sweep.values(), strict=True)
        else:
            tuples = itertools.product(*self.sweep.values())
        return [dict(zip(fields, values, strict=True)) for values in tuples]

    def _job(self, name: str, workdir: str, row: Mapping[str, str]) -> Job:
        command, given = command_of(self.command)
        flag, _, file = COMMANDS[command].writes.partition("/")
        out = f"{workdir}/{file}" if file else workdir
        words = [
            *([] if command == "train" else [command]),
            *given,
            *([f"--config={self.config}"] if self.config else []),
            *([f"--{flag}={out}"] if flag and workdir else []),
            *(f"--config.{field}={value}" for field, value in [*self.overrides, *row.items()]),
        ]
        return Job(name, workdir, tuple(words))


def run_name(row: Mapping[str, str]) -> str:
    """`optim.lr=1e-3,seed=0`, with what a file system or shell may not like as `_`."""
    return ",".join(f"{f}={re.sub(r'[^A-Za-z0-9.+=-]+', '_', v)}" for f, v in row.items())


def parse_fields(items: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """`optim.lr=1e-3` -> ("optim.lr", "1e-3"); `config.` before the field may be left out.

    Raises:
      ValueError: no field, no value, or a field given twice.
    """
    pairs: list[tuple[str, str]] = []
    for item in items:
        field, equals, value = item.partition("=")
        field = field.removeprefix("--").removeprefix("config.")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", field):
            raise ValueError(f"{flag} {item}: expected FIELD=VALUE, for example optim.lr=1e-3")
        if field in dict(pairs):
            raise ValueError(f"{flag} {item}: the field is given twice")
        pairs.append((field, value))
    return pairs


def parse_sweep(items: Sequence[str], flag: str = "--set") -> dict[str, list[str]]:
    """`["optim.lr=1e-3,3e-4"]` -> {"optim.lr": ["1e-3", "3e-4"]}.

    Values that hold commas are given as a JSON list: `optim.freeze=[["encoder"], []]`.

    Raises:
      ValueError: no field, an empty value, or a field given twice.
    """
    sweep: dict[str, list[str]] = {}
    for field, text in parse_fields(items, flag):
        values = _values(text)
        if not values or not all(values):
            raise ValueError(
                f"{flag} {field}={text}: expected values with commas between them, for example "
                "seed=0,1,2"
            )
        sweep[field] = values
    return sweep


def _values(text: str) -> list[str]:
    if text.startswith("["):
        try:
            found: list[object] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{text}: starts with [ but is no JSON list ({error})") from error
        return [one if isinstance(one, str) else _override(one) for one in found]
    return text.split(",")


def _override(value: object) -> str:
    """A JSON value as the command line of train takes it: tuples in brackets."""
    if isinstance(value, list):
        return f"({''.join(f'{one!r},' for one in value)})"
    return str(value)


def command_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """(name, arguments) of what a job runs: `ivj NAME ...`, `NAME ...`, or arguments of train.

    Raises:
      ValueError: no such command, or one that is for this machine.
    """
    rest = list(words)
    if rest[:1] == ["ivj"]:
        del rest[0]
        if not rest:
            raise ValueError(f"no command after ivj; known: {', '.join(COMMANDS)}")
    if not rest or rest[0].startswith("-"):
        return "train", rest
    name = rest.pop(0)
    if name not in COMMANDS:
        raise ValueError(
            f"{name!r} is no command of ivj: {suggest(name, COMMANDS)}; expected `ivj COMMAND ...` "
            "or arguments of `ivj train` after --"
        )
    if name == "launch":
        raise ValueError(
            "ivj launch is what starts the processes of a job; give the command that it should "
            "start, and --restarts=N before --"
        )
    return name, rest


def worker_command(words: Sequence[str], *, restarts: int = 0, python: str = "python") -> list[str]:
    """The process that every worker of a job starts.

    Args:
      words: as `command_of` takes them.
      restarts: how often a failed job is started again by the launcher; 0 runs without it.
      python: interpreter on the worker.

    Raises:
      ValueError: a negative number, an unknown command, or a training without recipe or directory.
    """
    if restarts < 0:
        raise ValueError(f"--restarts={restarts}: expected 0 or more")
    name, arguments = command_of(words)
    for flag in ("--config", "--workdir") if name == "train" else ():
        if not any(one == flag or one.startswith(f"{flag}=") for one in arguments):
            raise ValueError(f"no {flag} for the training; expected {flag}=... after --")
    process = [python, "-m", *COMMANDS[name].python, *arguments]
    if restarts == 0:
        return process
    return [
        python,
        "-m",
        "internvideo_jax.launch",
        f"--restarts={restarts}",
        "--",
        *process,
    ]


USAGE = (
    "usage: python -m internvideo_jax.launch.experiment [--restarts=N] [--python=PYTHON] -- "
    "ivj COMMAND ... (or arguments of ivj train)\n\n"
    "Prints the command that every worker of a job starts, quoted for a shell."
)


def main() -> None:
    """Prints the command of a worker, which scripts run."""
    # argparse drops a `--` among the arguments of another program, so they are split off first.
    own, dashes, arguments = split(sys.argv[1:])
    options: dict[str, Any] = {"restarts": 0, "python": "python"}
    try:
        if "--help" in own or "-h" in own:
            print(USAGE)
            return
        for item in own:
            name, _, value = item.removeprefix("--").partition("=")
            if name not in options:
                raise ValueError(f"unexpected {item!r}\n{USAGE}")
            options[name] = value if name == "python" else int(value)
        if not dashes:
            raise ValueError(f"no -- before the arguments of the command\n{USAGE}")
        print(shlex.join(worker_command(arguments, **options)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def split(words: list[str]) -> tuple[list[str], bool, list[str]]:
    """What comes before the first `--`, whether there is one, and what comes after it."""
    if "--" not in words:
        return words, False, []
    place = words.index("--")
    return words[:place], True, words[place + 1 :]


if __name__ == "__main__":
    main()
