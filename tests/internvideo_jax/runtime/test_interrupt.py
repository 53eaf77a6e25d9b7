"""Signals as requests to save."""

from __future__ import annotations

import signal

import pytest

from internvideo_jax.runtime import interrupt
from internvideo_jax.runtime.interrupt import Interrupt


def test_a_signal_is_a_request_and_its_echo_the_same_one():
    with Interrupt() as asked:
        assert not asked.requested
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert asked.requested and (asked.name, asked.exit_code) == ("SIGINT", 130)
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


def test_a_later_signal_ends_at_once(monkeypatch):
    monkeypatch.setattr(interrupt, "SAME_REQUEST_SECONDS", 0.0)
    with Interrupt() as asked:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert asked.requested
