"""What the person at the terminal sees while an ingest or a check runs."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm


def say(message: str) -> None:
    """Write a line to stderr, past a progress bar."""
    tqdm.write(message, file=sys.stderr)


class Bar:
    """A progress bar over tasks of several items, with the rate in frames per second.

    Args:
      sizes: items per task.
      unit: what an item is.
      quiet: count, but show nothing.

    Attributes:
      items: items done per task.
    """

    def __init__(self, sizes: Sequence[int], unit: str, quiet: bool):
        self._sizes = list(sizes)
        self.items = [0] * len(self._sizes)
        self._frames = [0] * len(self._sizes)
        self._began = time.monotonic()
        self._bar = tqdm(
            total=sum(self._sizes),
            unit=unit,
            disable=quiet,
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            file=sys.stderr,
        )

    def progress(self, task: int, items: int, frames: int) -> None:
        """Set what a task has done; a task that is tried again starts over."""
        self.items[task], self._frames[task] = items, frames
        rate = sum(self._frames) / max(1e-3, time.monotonic() - self._began)
        self._bar.set_postfix_str(f"{rate:.0f} frames/s", refresh=False)
        self._bar.update(sum(self.items) - self._bar.n)

    def done(self, task: int, frames: int) -> None:
        """Count a task as complete; reports on the way are rare and may have missed its end."""
        self.progress(task, self._sizes[task], frames)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()
