"""How a command ends: exit codes, signals, and errors as one line."""

import signal
from collections.abc import Callable
from typing import Any

from data_pipelines.ingest.progress import say

# BAD_DATA: the command did its work, and the data is not good enough.
GOOD, BAD_DATA, USAGE, FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def run_command(work: Callable[[], int], stopped: str) -> int:
    """Do the work of a command; returns the exit code.

    Args:
      work: gives the exit code; what it raises becomes one line and an exit code. RuntimeError is
        a run that could not finish, OSError and ValueError are wrong use.
      stopped: what to say after ctrl-c or SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return work()
    except KeyboardInterrupt:
        say(stopped)
        return INTERRUPTED
    except RuntimeError as error:
        say(f"error: {error}")
        return FAILED
    except (OSError, ValueError) as error:
        say(f"error: {error}")
        return USAGE
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: Any) -> None:
    """Batch systems stop jobs with SIGTERM; it deserves the same tidy end as ctrl-c."""
    raise KeyboardInterrupt
