"""SIGTERM and ctrl-c as a request to save and stop."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher and its scheduler may both pass the same request on.
SAME_REQUEST_SECONDS = 3.0


class Interrupt:
    """Context in which the first signal only sets `requested`; a later one ends at once.

    Args:
      shared: SIGTERM is taken by jax's coordination service, which tells all processes of the job
        (`multihost.takes_notices`). It then stays with the service, which ignores a second one, and
        ctrl-c is handed to it as well; `requested` is not what to look at.
    """

    def __init__(self, shared: bool = False) -> None:
        self.requested = False
        self.name = "SIGTERM to a process of this job" if shared else ""
        self.exit_code = 128 + signal.SIGTERM if shared else 0
        self._shared = shared
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in SIGNALS[1:] if self._shared else SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() - self._since > SAME_REQUEST_SECONDS:
                signal.signal(number, self._previous[signal.Signals(number)])
                signal.raise_signal(number)
            return
        self.requested, self._since = True, time.monotonic()
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
        if self._shared:
            signal.raise_signal(signal.SIGTERM)
