"""What the entry points share: flags, configs from the command line, errors as one message."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from data_pipelines.commands.ending import quietly
from data_pipelines.commands.exit_codes import ExitCode, exit_code_of, message_of
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.recipes import loading

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe and its options: configs/x/y.py:size=base,smoke, a path or the name of one that comes "
    "with the package. Every field can be overridden: --config.optim.lr=1e-3",
    lock_config=True,
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of process 0, in a job of several processes; TPU slices, Slurm "
    "steps and JobSets need none of these three.",
)
PROCESSES = flags.DEFINE_integer("processes", 0, "Number of processes of the job.", lower_bound=0)
PROCESS = flags.DEFINE_integer("process", -1, "Number of this process, from 0.", lower_bound=-1)
COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache",
    "",
    "Folder for compiled programs, or off; default: JAX_COMPILATION_CACHE_DIR, else a folder in "
    "the user's cache directory.",
)
NO_CONFIG = (
    "no --config given; recipes are in configs/, for example "
    "--config=configs/videomae/pretrain.py:size=base"
)
# The flag of commands that read weights, which each of them defines: name, default, help.
CHECKPOINT = (
    "checkpoint",
    None,
    "Run directory, one of its steps, or a .safetensors / .pth file. A run knows its config; a "
    "file needs --config.",
)
HELP = frozenset(("-h", "-?", "--help", "-help", "--helpshort", "--helpfull"))
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def typed_config() -> TrainConfig:
    """The config of this command line; ValueError where it does not fit the schema."""
    try:
        plain = None if CONFIG.value is None else CONFIG.value.to_dict()
    except OSError as error:  # what a run says of itself is looked at only here
        raise ValueError(str(error.__cause__ or error)) from error
    if plain is None:
        raise ValueError(NO_CONFIG)
    # A length on the command line replaces the recipe's, which may be the other of the two.
    length = {"steps", "epochs"} & overridden()
    if len(length) == 1 and plain[next(iter(length))]:
        plain = {**plain, **{name: 0 for name in ("steps", "epochs") if name not in length}}
    return to_typed(TrainConfig, plain)


def recipe() -> str:
    """--config as it was typed; empty where the config is that of a checkpoint."""
    request = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]
    return json.loads(request)["recipe"] if request else ""


def overridden() -> set[str]:
    """Fields of the config that this command line sets, such as `optim.lr`."""
    return set(config_flags.get_override_values(flags.FLAGS["config"]))


def read_labels(text: str) -> tuple[str, ...]:
    """Classes from `a,b,c`, or from the lines of the file in `@file`; empty for no text.

    Raises:
      ValueError: no such file, or no class in it.
    """
    if not text:
        return ()
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--labels={text}: cannot read the file ({error})") from error
    else:
        lines = text.split(",")
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ValueError(f"--labels={text}: no class in it")
    return names


def run(
    main: Callable[..., int | None],
    words: bool = False,
    *,
    stored: bool = False,
    published: bool = False,
    evaluators: bool = False,
    about: str = "",
) -> None:
    """Parses flags and runs `main`; errors become one message and a code of `exit_codes`.

    Args:
      words: the command takes words beside its options; `main` gets them as a list.
      stored: without --config, the config is that of the run given as --checkpoint.
      published: without --config, it is that of --weights: a run's own, or the recipe of the
        published checkpoint that a file is.
      evaluators: those named by --only or an override are added where the config lacks them.
      about: what --help says first; default: the text of the module of `main`.
    """

    def parse(arguments: Sequence[str]) -> list[str]:
        if words:
            flags.FLAGS.set_gnu_getopt()  # options may follow words
        arguments = requested(arguments, stored=stored, published=published, evaluators=evaluators)
        # The library looks for overrides there, not in what it is given.
        sys.argv[:] = arguments
        try:
            if wanted := HELP.intersection(word.partition("=")[0] for word in arguments):
                text = about or sys.modules[main.__module__].__doc__ or ""
                print(help_text(text, arguments, full="--helpfull" in wanted))
                sys.exit(0)
            rest = flags.FLAGS(list(arguments))
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            sys.exit(_explain(_flag_message(error)))
        if len(rest) > 1 and not words:
            sys.exit(
                _explain(f"unexpected argument {rest[1]!r}; options start with --, see --help")
            )
        return rest

    if _READ is not None:
        parse(sys.argv)
        _READ.append(typed_config() if recipe() else None)
        return

    def guarded(rest: Sequence[str]) -> None:
        quiet_libraries(debug=DEBUG.value)
        _use_large_pages()
        try:
            code = quietly(lambda: main(list(rest[1:])) if words else main())
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  (a bug has its code)
            code = exit_code_of(error)
            if isinstance(error, KeyboardInterrupt):
                print("stopped", file=sys.stderr)
            elif DEBUG.value or code == ExitCode.BUG:
                traceback.print_exc()
            else:
                _explain(f"{message_of(error)}\n(--debug shows where)")
            sys.stdout.flush()
            sys.stderr.flush()
            # Not sys.exit: threads of a failed save or a data worker could keep the process alive.
            os._exit(code)
        sys.exit(code or ExitCode.GOOD)

    app.run(guarded, flags_parser=parse)


# What `reading_only` has read; None outside of it.
_READ: list[TrainConfig | None] | None = None


@contextlib.contextmanager
def reading_only() -> Iterator[list[TrainConfig | None]]:
    """Inside, commands read and check their command line and end before their work.

    For a process of its own: what the line sets stays set.

    Yields:
      a list that gets the config of each, or None where it was given no recipe.
    """
    global _READ
    _READ = []
    try:
        yield _READ
    finally:
        _READ = None


def quiet_libraries(*, debug: bool = False) -> None:
    """Libraries report every step of their work at INFO, and failures that they raise as well."""
    logging.set_verbosity(logging.WARNING if debug else logging.FATAL)


def requested(
    arguments: Sequence[str],
    *,
    stored: bool = False,
    published: bool = False,
    evaluators: bool = False,
) -> list[str]:
    """The command line with --config as `loading.get_config` reads it; arguments as in `run`."""
    recipe, rest, left = "", [], list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            rest += [word, *left]
            break
        if word in ("--config", "-config"):
            recipe = left.pop(0) if left else ""
        elif word.startswith(("--config=", "-config=")):
            recipe = word.partition("=")[2]
        else:
            rest.append(word)
    checkpoint = _values("checkpoint", rest)[-1:] if stored else []
    weights = _values("weights", rest)[-1:] if published else []
    if not recipe and not checkpoint and not weights:
        return rest
    fields = [
        word.lstrip("-").partition("=")[0].partition(".")[2].removesuffix("!")
        for word in rest
        if re.match(r"--?(no)?config\.", word)
    ]
    labels = [label for value in _values("only", rest) for label in value.split(",")]
    labels += [field.split(".")[1] for field in fields if field.startswith("evals.")]
    request = {
        "recipe": recipe,
        "checkpoint": "".join(checkpoint),
        "weights": "".join(weights),
        "evals": labels if evaluators else [],
        "fields": fields,
    }
    # It must come before the overrides.
    return [*rest[:1], f"--config={loading.__file__}:{json.dumps(request)}", *rest[1:]]


def _values(flag: str, arguments: Sequence[str]) -> list[str]:
    """What a flag is given, in order."""
    found = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            found.append(value if equals else following)
    return [value for value in found if value]


def help_text(about: str, arguments: Sequence[str], *, full: bool) -> str:
    """What a command does, its flags, and with `full` the fields of the recipe in `arguments`."""
    spec = vars(sys.modules["__main__"]).get("__spec__")
    module = spec.name.removesuffix(".__main__") if spec else ""
    name = os.path.basename(arguments[0])
    if module and not name.startswith("ivj "):
        name = f"python -m {module}"
    # Those of the command itself come before those that it shares with others.
    own = [
        flag
        for place, its in sorted(
            flags.FLAGS.flags_by_module_dict().items(), key=lambda item: item[0] == __name__
        )
        if place.startswith(("internvideo_jax", "benchmarks", "scripts")) or place == arguments[0]
        for flag in its
    ]
    lines = [f"usage: {name} [--FLAG=VALUE ...]", "", about.strip(), "", "flags:"]
    for flag in own:
        default = "" if flag.default in (None, "", [], False) else f" (default: {flag.default})"
        text = textwrap.wrap(f"{flag.help}{default}", 76)
        sign = "" if flag.boolean else "=VALUE"
        lines += [f"  --{flag.name}{sign}", *(f"      {line}" for line in text)]
    given = next((word for word in arguments if word.startswith("--config=")), "")
    if full and given:
        plain = loading.get_config(given.partition(":")[2]).to_dict()
        lines += ["", "fields of the recipe:"]
        lines += [f"  --config.{path}={value!r}" for path, value in loading.leaves(plain)]
    elif not full:
        lines += ["", "--helpfull with a --config lists its fields, each of which is a flag."]
    return "\n".join(lines)


def _use_large_pages() -> None:
    """On a Linux machine without accelerators, starts this command again with large memory pages.

    XLA gets the buffers of a step from the system and returns them after it. With small pages a
    seventh (VideoMAE-S) to a quarter (`size=tiny`) of every step goes into handing them out. The C
    library reads this setting only when a process starts. A setting of the user's own wins.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    accelerators = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidia0", "/dev/kfd")
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(os.path.exists, accelerators)):
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def _flag_message(error: BaseException) -> str:
    """What went wrong while flags were read, without the wrapping of the flag library."""
    while "Traceback" in str(error) and error.__context__ is not None:
        error = error.__context__
    if isinstance(error, OSError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, KeyError | AttributeError):  # an entry of a sequence that is not there
        return f"--config: {error.args[0]}"
    if isinstance(error, flags.UnrecognizedFlagError):
        if error.flagname.startswith("config."):
            return f"--{error.flagname} changes a recipe, and {NO_CONFIG}"
        if meant := _fields_called(error.flagname):
            return f"{error}; a field of the recipe is set by {' or '.join(meant)}"
    return str(error)


def _fields_called(name: str) -> list[str]:
    """Flags of the fields of a config, and of its sections, that `name` may stand for."""
    found = []
    for field in dataclasses.fields(TrainConfig):
        inner = dataclasses.fields(field.default) if dataclasses.is_dataclass(field.default) else ()
        paths = [field.name, *(f"{field.name}.{each.name}" for each in inner)]
        found += [f"--config.{path}=" for path in paths if name in (path, path.rpartition(".")[2])]
    return found


def _explain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return ExitCode.USAGE
