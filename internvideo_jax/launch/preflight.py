"""Is a job worth renting machines for? Reads its command line and recipe as its workers will.

    python -m internvideo_jax.launch.preflight --slice=v5e:16x16 --extras=text --restarts=3 -- \\
        ivj train --config=... --workdir=...

prints two lines for a script, the command of every worker and the extras that it needs, and on the
standard error stream what it found: which slice, whether the batch divides it and its state fits,
how long the run takes at best. What is wrong is one error, before anything is rented. No TPU, no
data and no compiler is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_pipelines import recipe_files
from internvideo_jax.commands import COMMANDS
from internvideo_jax.launch import extras
from internvideo_jax.launch.cloud import CloudSlice
from internvideo_jax.launch.experiment import command_of, split, worker_command

if TYPE_CHECKING:  # what a command line alone says needs no jax
    from internvideo_jax.config import TrainConfig

DATA = re.compile(r"config\.(data|evals\.[^.]+\.source)\.(train|eval|features|directory)$")


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a job is to run.

    Attributes:
      slice: a TPU slice, as compile_check names them; empty where it is none.
      hosts: processes that start the command; 0: as many as the slice has TPU VMs.
      elsewhere: whether the workers have other disks than this machine.
      price: of a chip-hour, in any currency; 0: not known.
      records: clips of the training set or its name, as for `ivj check`.
    """

    slice: str = ""
    hosts: int = 0
    elsewhere: bool = True
    price: float = 0.0
    records: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a check found.

    Attributes:
      extras: extra -> what asks for it.
      lines: for a person.
    """

    extras: Mapping[str, str]
    lines: Sequence[str]


def preflight(words: Sequence[str], target: Target) -> Found:
    """Checks what the workers of a job would run; for a process of its own, as it reads flags.

    Args:
      words: as `command_of` takes them.

    Raises:
      ValueError: what the command would refuse, a path that is none, or a slice that does not fit.
    """
    name, arguments = command_of(words)
    check_hosts(name, target)
    lines = [] if not target.slice else [slice_line(CloudSlice(target.slice))]
    given = extras.flag_values(arguments)
    wanted = extras.needed(given)
    config, remark = read(name, arguments)
    if remark:
        lines.append(f"recipe       {remark}")
    if config is None:
        return Found(wanted, lines)
    # Late: what a command line alone says needs no jax.
    from internvideo_jax.config import as_plain
    from internvideo_jax.recipes.loading import leaves

    fields = [(f"config.{path}", value) for path, value in leaves(as_plain(config))]
    wanted = {**extras.needed(fields), **wanted, **of_trackers(config)}
    lines += [f"needs        [{extra}] for {why}" for extra, why in wanted.items()]
    if target.elsewhere:
        lines += [
            f"data         {path}={value} is a folder of this machine; on a worker it lies below "
            "its checkout"
            for path, value in fields
            if DATA.search(path) and isinstance(value, str) and is_relative(value)
        ]
    if name == "train":
        check_data(config)
        if target.slice:
            lines += fit(config, target)
    return Found(wanted, lines)


def read(name: str, arguments: Sequence[str]) -> tuple[Any, str]:
    """(config, remark): the command line as the command itself reads it.

    Raises:
      ValueError: what the command would say of it.
    """
    command = COMMANDS[name]
    if command.reads != "recipe":
        if command.reads:
            _quietly(
                lambda: getattr(importlib.import_module(command.module), command.reads)(
                    [*command.words, *arguments]
                )
            )
            return None, ""
        return None, f"the options of ivj {name} are read by the worker"
    recipe = dict(extras.flag_values(arguments)).get("--config", "")
    if recipe:
        recipe_files.find(recipe.partition(":")[0])  # before jax is imported
    else:  # the config is that of a checkpoint, which may be where only the workers see it
        arguments = [word for word in arguments if not re.match(r"--?(no)?config\.", word)]
    try:
        from internvideo_jax import cli
    except ImportError as error:
        raise _absent(error) from error
    sys.argv[:] = [f"ivj {name}", *arguments]
    with cli.reading_only() as configs:
        _quietly(importlib.import_module(command.module).main, stores=bool(recipe))
    if not configs or configs[0] is None:
        return None, "the config is that of the checkpoint, which the worker reads"
    return configs[0], f"{recipe} with its overrides fits the schema"


def _quietly(call: Callable[[], object], *, stores: bool = True) -> None:
    """Calls what ends with a message and an exit code; ValueError with that message.

    Args:
      stores: whether it has to have the libraries of the object stores that it reads from.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            call()
    except ImportError as error:
        if stores or error.name is not None:  # ours, of a missing extra, have no name
            raise _absent(error) from error
    except SystemExit as end:
        if end.code not in (0, None):
            text = said.getvalue().strip()
            raise ValueError(text[text.rfind("error: ") :].removeprefix("error: ")) from None


def _absent(error: ImportError) -> ValueError:
    return ValueError(
        f"the check needs the libraries of this package, and {sys.executable} has no {error.name}; "
        "activate its environment, set PYTHON to its Python, or leave the check out with --no-check"
    )


def of_trackers(config: TrainConfig) -> dict[str, str]:
    """extra -> field, of config.log.trackers.

    Raises:
      ValueError: a tracker that is unknown.
    """
    from internvideo_jax.telemetry.trackers.delivery import tracker_class

    names = [name for name in config.log.trackers if ":" not in name]
    needs = {name: tracker_class(name).needs for name in names}
    return {each[1]: f"config.log.trackers={name}" for name, each in needs.items() if each}


def is_relative(path: str) -> bool:
    """Whether a path of data is neither empty, absolute nor an address."""
    return bool(path) and not path.startswith("/") and "://" not in path


def check_hosts(name: str, target: Target) -> None:
    """ValueError for a command of one process that several would start."""
    hosts = target.hosts or (CloudSlice(target.slice).vms if target.slice else 1)
    if hosts > 1 and not COMMANDS[name].joins:
        joining = " and ".join(f"ivj {each}" for each, about in COMMANDS.items() if about.joins)
        raise ValueError(
            f"ivj {name} works in one process, and here {hosts} would do the same work and write "
            "to the same place; take one host (of TPUs up to v5e:2x4 or v6e:2x4, on GKE v5e:2x2), "
            f"or start one job for each --part where it has that flag. {joining} work over hosts"
        )


def check_data(config: TrainConfig) -> None:
    """ValueError for a training without data."""
    from data_pipelines.stream.mixture import components_of

    if not all(component.directory for component in components_of(config.data)):
        raise ValueError(
            "config.data.train is empty; expected the folder or address of shards that the workers "
            "see, such as --config.data.train=gs://BUCKET/shards"
        )


def slice_line(target: CloudSlice) -> str:
    """What is rented."""
    hosts = f"{target.vms} host{'s' * (target.vms > 1)}"
    return (
        f"slice        {target.name}: {target.chips} chips on {hosts}, "
        f"{target.accelerator_type} in Google Cloud"
    )


def fit(config: TrainConfig, target: Target) -> list[str]:
    """Batch, mesh, state and bound on the slice.

    Raises:
      ValueError: they contradict each other, or the state alone is larger than the memory.
    """
    from internvideo_jax.compile_check.quick import estimate

    text, fits = estimate(config, target.slice, target.records, price=target.price)
    kept = ("batch ", "parameters ", "frozen ", "memory ", "at best ", "run ", "sharding  ")
    lines = [line for line in text.splitlines() if line.startswith(kept)]
    if not fits:
        raise ValueError(f"the run does not fit {target.slice}:\n" + "\n".join(lines))
    return lines


def parser() -> argparse.ArgumentParser:
    """The options before `--`."""
    result = argparse.ArgumentParser(
        prog="python -m internvideo_jax.launch.preflight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument("--slice", default="", help="as for compile_check, such as v5e:16x16")
    result.add_argument("--jax", default="", choices=["", *extras.OF_TARGET], help="its extra")
    result.add_argument("--hosts", type=int, default=0, help="processes that start the command")
    result.add_argument("--here", action="store_true", help="the workers see this machine's disks")
    result.add_argument("--extras", default="", help="further ones, with commas")
    result.add_argument("--price", type=float, default=0.0, help="of a chip-hour, for the cost")
    result.add_argument("--records", default="", help="clips of the training set, or its name")
    result.add_argument("--restarts", type=int, default=0, help="of a command that fails")
    result.add_argument("--python", default="python", help="interpreter on the worker")
    result.add_argument(
        "--dry-run", action="store_true", help="what is wrong is a warning: nothing is rented"
    )
    return result


def main() -> int:
    """Prints the command of a worker and its extras; 2 where the job would come to nothing."""
    own, _, words = split(sys.argv[1:])
    options = parser().parse_args(own)
    elsewhere = not options.here
    target = Target(options.slice, options.hosts, elsewhere, options.price, options.records)
    try:
        further = extras.parse_extras(options.extras)
        command = worker_command(words, restarts=options.restarts, python=options.python)
        wanted = extras.needed(extras.flag_values(words))
        try:
            found = preflight(words, target)
            wanted = found.extras
            for line in found.lines:
                print(f"check: {line}", file=sys.stderr)
        except ValueError as error:
            if not options.dry_run:
                raise
            print(f"warning: {error}; without --dry-run this is an error", file=sys.stderr)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(shlex.join(command))
    print(extras.joined(options.jax, further, wanted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
