"""What a tracker is: a few methods, of which a class needs only those that it has a use for.

    class Printed(Tracker):
        def log(self, step, values):
            print(step, values)

`config.log.trackers = ("my_module:Printed",)` uses it; a line in `registry.TRACKERS` gives it a
name. The methods are called one after another in a thread of the tracker's own (`delivery`), on
the main process only, so they may be slow or fail: training neither waits nor ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it begins or goes on.

    Attributes:
      id: 16 hexadecimal digits, the same after every restart in this workdir.
      name: of its folder.
      workdir: its folder.
      config: all fields by their paths, such as {"optim.lr": 1e-3}.
      recipe: as the command line names it; empty where it has none.
      start: the step before the first of this start; 0 for a new run.
      seen: the last step that an earlier start logged. Where it is above `start`, the steps
        between come a second time.
    """

    id: str
    name: str
    workdir: Path
    config: Mapping[str, Any]
    recipe: str = ""
    start: int = 0
    seen: int = 0

    @property
    def goes_on(self) -> bool:
        """Whether an earlier start of this run may have begun it."""
        return bool(self.start or self.seen)


class Tracker:
    """A service that a run is sent to. All methods do nothing unless overridden."""

    # Module that it cannot do without, and the extra of this package that brings it.
    needs: ClassVar[tuple[str, str] | None] = None

    def begin(self, run: TrackedRun) -> None:
        """Before everything else. The same `run.id` again means the same run: append to it."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one log point, such as {"train/loss": 0.5}; several calls may share a step."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG or GIF that an evaluator drew after `step`."""

    def file(self, path: Path) -> None:
        """A file to keep with the run: `run.json` at every start, `report.html` at the end."""

    def end(self, status: str) -> None:
        """After everything else: `finished`, `stopped` (asked to; goes on later) or `failed`.

        A killed process comes to no end; the next start says `begin` again.
        """

    def abandon(self) -> None:
        """From another thread, where it does not end in time: nothing may keep the process."""
