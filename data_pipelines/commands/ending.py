"""How a command ends: signals, and errors as one line and an exit code."""

import signal
import traceback
from collections.abc import Callable
from typing import Any

from data_pipelines.commands.exit_codes import ExitCode, exit_code_of, message_of
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
        return work()
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


def _interrupt(signum: int, frame: Any) -> None:
    """Batch systems stop jobs with SIGTERM; it deserves the same tidy end as ctrl-c."""
    raise KeyboardInterrupt(signum)
