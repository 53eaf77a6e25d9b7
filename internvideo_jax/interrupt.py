"""SIGTERM and ctrl-c as a request to save and stop."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Context in which the first signal only sets `requested`; a second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        self.name = ""
        self.exit_code = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
        signal.signal(number, self._previous[signal.Signals(number)])
