"""The exit codes of all commands of both packages, and which error ends with which of them.

docs/launch.md has the table with what the launcher does. Nothing but the standard library here: the
launcher reads it too.
"""

import enum
import errno
import os
import re
import signal
import socket
from collections.abc import Sequence


class ExitCode(enum.IntEnum):
    """How a command ended. Stopped by signal n, with everything saved: 128 + n."""

    GOOD = 0
    # The command did its work, and the answer is no: data with faults, a step that does not fit.
    # Python's own code, too, for an exception before a command could take care of it.
    BAD_DATA = 1
    USAGE = 2  # input or settings that do not fit
    FAILED = 3  # a run that has no hope: started again it would come to the same end
    BUG = 70  # an exception that nobody expected, with its traceback (EX_SOFTWARE of sysexits.h)
    AGAIN = 75  # a fault outside of the run: starting it again may mend it (EX_TEMPFAIL)


# Nobody reads what a command prints any more, as of `command | head`: what a shell shows of a
# program that SIGPIPE ended.
UNREAD = 128 + signal.SIGPIPE
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_NEVER = (ExitCode.GOOD, ExitCode.USAGE, ExitCode.FAILED, UNREAD, *STOPPED)
_ONCE = (ExitCode.BAD_DATA, ExitCode.BUG)


class PassingFault(RuntimeError):
    """A fault outside of the run, such as a killed worker or storage that does not answer."""


# What the system says of networks, and of machines and disks, rather than of what it was asked for.
# Not EPIPE, which is `command | head`, nor EAGAIN, by which a lock of another process shows.
NETWORK = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        socket.EAI_AGAIN,  # a name service that does not answer
    }
)
_MACHINE = frozenset(
    {
        errno.EBUSY,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ESTALE,
    }
)
# Libraries that write files from native code pass on the words only.
_PASSING_WORDS = re.compile(
    "|".join(
        re.escape(os.strerror(number))
        for number in (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.ESTALE)
    ),
    re.IGNORECASE,
)
# Of jax's errors: a device or another process. RESOURCE_EXHAUSTED and the rest would come again.
_PASSING_STATUS = re.compile(
    r"\s*(UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|CANCELLED|INTERNAL|DATA_LOSS)\b"
)
_JAX_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")


def exit_code_of(error: BaseException) -> int:
    """The code of a command that ends with this error.

    PassingFault, or errors of disks, networks and devices anywhere in its chain of causes: AGAIN.
    Otherwise ValueError, OSError and ImportError are USAGE, RuntimeError and MemoryError FAILED,
    ctrl-c and SIGTERM 128 + their number, everything else a BUG.
    """
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    link: BaseException | None = error
    for _ in range(16):
        if link is None:
            break
        if _passes(link):
            return ExitCode.AGAIN
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    if isinstance(error, (ValueError, OSError, ImportError)):
        return ExitCode.USAGE
    if isinstance(error, (RuntimeError, MemoryError)):
        return ExitCode.FAILED
    return ExitCode.BUG


def _passes(error: BaseException) -> bool:
    if isinstance(error, PassingFault | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NETWORK | _MACHINE
    if any(kind.__name__ in _JAX_ERRORS for kind in type(error).__mro__):
        return _PASSING_STATUS.match(str(error)) is not None
    # Not of any exception: a KeyError may quote whatever a file holds.
    known = isinstance(error, RuntimeError | OSError | ValueError)
    return known and _PASSING_WORDS.search(str(error)) is not None


def message_of(error: BaseException) -> str:
    """What the person at the terminal is told of an error that `exit_code_of` knows."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"this machine has not enough memory ({text})"
    if exit_code_of(error) == ExitCode.AGAIN and "again" not in text:
        text += ". Once this has passed, start the same command again: it goes on"
    return text


def starts_again(ends: Sequence[int], restarts: int) -> bool:
    """Whether a launcher starts a job again.

    Args:
      ends: codes of its attempts since the last progress, the newest last.
      restarts: how many attempts without progress the user allows after the first.
    """
    if ends[-1] in _NEVER or len(ends) > restarts:
        return False
    return ends[-1] not in _ONCE or sum(code in _ONCE for code in ends) == 1
