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


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run."""

    name: str  # of its directory below the experiment's, and part of names in a cluster
    workdir: str
    arguments: tuple[str, ...]  # of internvideo_jax.train, --workdir included


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One recipe with one or several sets of overrides.

    Each run of a sweep has its own directory below `workdir`; without a sweep the one run has
    `workdir` itself.
    """

    name: str
    config: str  # file of the recipe with its options, as for train
    workdir: str
    overrides: Sequence[tuple[str, str]] = ()  # field -> text, the same in every run
    sweep: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    zipped: bool = False  # the i-th values of all fields together, instead of every combination
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
        cls, name: str, config: str, workdir: str, sets: Sequence[str], zipped: bool = False
    ) -> Experiment:
        """From the texts of --set flags; a field with several values is swept over."""
        fields = parse_sweep(sets)
        fixed = [(field, values[0]) for field, values in fields.items() if len(values) == 1]
        sweep = {field: values for field, values in fields.items() if len(values) > 1}
        return cls(name, config, workdir, fixed, sweep, zipped)

    def jobs(self) -> list[Job]:
        """The runs, in the order of the sweep.

        Raises:
          ValueError: lists of different lengths for a zipped sweep, or two equal runs.
        """
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
        fields = [*self.overrides, *row.items()]
        return Job(
            name,
            workdir,
            (
                f"--config={self.config}",
                f"--workdir={workdir}",
                *(f"--config.{field}={value}" for field, value in fields),
            ),
        )


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


def worker_command(
    arguments: Sequence[str], *, restarts: int = 0, python: str = "python"
) -> list[str]:
    """The process that every worker of a job starts.

    Args:
      arguments: of internvideo_jax.train.
      restarts: how often a failed job is started again by the launcher; 0 runs without it.
      python: interpreter on the worker.

    Raises:
      ValueError: a negative number, or arguments without a recipe or directory.
    """
    if restarts < 0:
        raise ValueError(f"--restarts={restarts}: expected 0 or more")
    for flag in ("--config", "--workdir"):
        if not any(one == flag or one.startswith(f"{flag}=") for one in arguments):
            raise ValueError(f"no {flag} for the training; expected {flag}=... after --")
    train = [python, "-m", "internvideo_jax.train", *arguments]
    if restarts == 0:
        return train
    return [
        python,
        "-m",
        "internvideo_jax.launch",
        f"--restarts={restarts}",
        "--",
        *train,
    ]


USAGE = (
    "usage: python -m internvideo_jax.launch.experiment [--restarts=N] [--python=PYTHON] -- "
    "--config=... --workdir=... [arguments of internvideo_jax.train]\n\n"
    "Prints the command that every worker of a job starts, quoted for a shell."
)


def main() -> None:
    """Prints the command of a worker, which scripts run."""
    # argparse drops a `--` among the arguments of another program, so they are split off first.
    own, dashes, arguments = _split(sys.argv[1:])
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
            raise ValueError(f"no -- before the arguments of the training\n{USAGE}")
        print(shlex.join(worker_command(arguments, **options)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _split(words: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in words:
        return words, False, []
    place = words.index("--")
    return words[:place], True, words[place + 1 :]


if __name__ == "__main__":
    main()
