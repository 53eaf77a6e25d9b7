"""What the entry points share: flags, configs from the command line, errors as one message."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from data_pipelines.exit_codes import ExitCode, exit_code_of, message_of
from internvideo_jax.config import TrainConfig, as_plain, to_typed
from internvideo_jax.registry import suggest

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe and its options: configs/x/y.py or configs/x/y.py:size=base,smoke. Every field can be "
    "overridden: --config.optim.lr=1e-3",
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
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def config_dict(config: TrainConfig) -> ConfigDict:
    """The recipe as a ConfigDict that holds every field, so that each can be overridden."""
    # Once through the schema turns ints in float fields into floats, whose overrides may be any.
    return ConfigDict(as_plain(to_typed(TrainConfig, as_plain(config))))


def typed_config() -> TrainConfig:
    """The config of this command line; ValueError where it does not fit the schema."""
    try:
        plain = None if CONFIG.value is None else CONFIG.value.to_dict()
    except OSError as error:  # a missing file shows only here, in several lines
        recipes = [str(path) for path in sorted(Path("configs").rglob("*.py"))]
        place = str(error).strip().splitlines()[-1].strip()
        name = place.split("'")[1] if "'" in place else place
        raise ValueError(f"--config: {place}; {suggest(name, recipes)}") from error
    if plain is None:
        raise ValueError(
            "no --config given; recipes are in configs/, for example "
            "--config=configs/videomae/pretrain.py:size=base"
        )
    return to_typed(TrainConfig, plain)


def overridden() -> set[str]:
    """Fields of the config that this command line sets, such as `optim.lr`."""
    return set(config_flags.get_override_values(CONFIG))


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Options after the colon of `--config=file.py:size=base,smoke`.

    Args:
      defaults: name -> default value, whose type decides how the text is read; a bare name of a
        bool means True.

    Raises:
      ValueError: an unknown name or a value of the wrong type.
    """
    options = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ValueError(f"unknown config option {name!r}: {suggest(name, defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise ValueError(f"config option {name}: expected true or false, found {text!r}")
            options[name] = not equals or text.lower() in ("true", "1")
            continue
        try:
            options[name] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config option {name}: expected {kind.__name__}, found {text!r}"
            ) from error
    return options


def check_known(options: Mapping[str, Any], **known: Iterable[str]) -> None:
    """ValueError with the near matches for the first option that is none of its known values."""
    for name, values in known.items():
        found = options[name]
        if found not in values:
            raise ValueError(f"unknown {name} {found!r}: {suggest(found, values)}")


def run(main: Callable[..., int | None], words: bool = False) -> None:
    """Parses flags and runs `main`; errors become one message and a code of `exit_codes`.

    Args:
      words: the command takes words beside its options; `main` gets them as a list.
    """

    def parse(arguments: Sequence[str]) -> list[str]:
        if words:
            flags.FLAGS.set_gnu_getopt()  # options may follow words
        try:
            rest = flags.FLAGS(list(arguments))
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            sys.exit(_explain(_flag_message(error)))
        if len(rest) > 1 and not words:
            sys.exit(
                _explain(f"unexpected argument {rest[1]!r}; options start with --, see --help")
            )
        return rest

    def guarded(rest: Sequence[str]) -> None:
        # Libraries report every step of their work at INFO, and failures that they raise as well.
        logging.set_verbosity(logging.WARNING if DEBUG.value else logging.FATAL)
        _use_large_pages()
        try:
            code = main(list(rest[1:])) if words else main()
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
    if isinstance(error, KeyError | AttributeError):
        text = str(error.args[0])
        with contextlib.suppress(ValueError, SyntaxError):
            text = str(ast.literal_eval(text))  # some come quoted once more
        field, _, hint = text.partition("\n")
        field = field.strip("'")
        return f"unknown config field {field!r}. {hint}".strip()
    return str(error)


def _explain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return ExitCode.USAGE
