"""How a command ends: signals, errors as one line and an exit code, output that nobody reads."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from data_pipelines.commands.exit_codes import UNREAD, ExitCode, exit_code_of, message_of
from data_pipelines.commands.progress import say

GOOD, BAD_DATA = ExitCode.GOOD, ExitCode.BAD_DATA


def run_command(work: Callable[[], int], stopped: str) -> int:
    """Do the work of a command; returns the exit code.

    Args:
      work: gives the exit code; what it raises becomes one line and the code of
        `exit_codes.exit_code_of`. Of an exception that nobody expected the traceback is shown.
      stopped: what to say after ctrl-c or SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return quietly(work)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  (a bug is shown and has its code)
        code = exit_code_of(error)
        if isinstance(error, KeyboardInterrupt):
            say(stopped)
        elif code == ExitCode.BUG:
            say("".join(traceback.format_exception(error)).rstrip())
        else:
            say(f"error: {message_of(error)}")
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


def quietly(work: Callable[[], Any]) -> Any:
    """What `work` returns, its output written; UNREAD, without a word, where nobody reads that.

    Of `command | head` the reader goes before the command has ended. A broken pipe to anything but
    the standard output stays an error.
    """
    try:
        try:
            result = work()
        except SystemExit:  # of a library that printed its help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return result
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # What is left in the buffer would be written, and fail, at the end of the interpreter.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return UNREAD


def _nobody_reads() -> bool:
    """Whether the standard output is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _interrupt(signum: int, frame: Any) -> None:
    """Batch systems stop jobs with SIGTERM; it deserves the same tidy end as ctrl-c."""
    raise KeyboardInterrupt(signum)
