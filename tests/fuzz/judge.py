"""Whose an error is: ours, raised on purpose with a message, or that of a library underneath."""

from __future__ import annotations

import dis
from pathlib import Path
from types import TracebackType

import data_pipelines
import internvideo_jax

OURS = (internvideo_jax, data_pipelines)
PACKAGES = tuple(str(Path(package.__file__ or "").parent) for package in OURS)
BUILT_IN = (ValueError, RuntimeError, OSError, ImportError)


def is_ours(error: BaseException) -> bool:
    """Whether a `raise` in our packages made it, of a class that commands turn into a message.

    `int(text)` in our code raises a ValueError too; it comes out of a call and not out of a
    `raise`, which the last instruction of the innermost frame tells.
    """
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    if at is None or not _raised_here(at):
        return False
    return isinstance(error, BUILT_IN) and (
        type(error).__module__.partition(".")[0] in [package.__name__ for package in OURS]
        or (
            type(error).__module__ == "builtins"
            and not isinstance(error, UnicodeError | RecursionError | NotImplementedError)
        )
    )


def _raised_here(at: TracebackType) -> bool:
    code = at.tb_frame.f_code
    instruction = dis.opname[code.co_code[at.tb_lasti]]
    return code.co_filename.startswith(PACKAGES) and instruction == "RAISE_VARARGS"
