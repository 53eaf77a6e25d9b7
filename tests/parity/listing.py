"""Golden cases that nothing compares: what the summary of a test session says of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WITHOUT = "no adapter for "  # GROUP/NAME, the reason of a skipped case


def without_adapter(skipped: Iterable[Any]) -> list[str]:
    """GROUP/NAME of the cases among the reports of skipped tests, sorted."""
    reasons = (str(each.longrepr[2]) for each in skipped if isinstance(each.longrepr, tuple))
    return sorted(text.partition(WITHOUT)[2] for text in reasons if WITHOUT in text)


def summary(skipped: Iterable[Any]) -> list[str]:
    """Lines for the terminal; none where every case has an adapter."""
    cases = without_adapter(skipped)
    if not cases:
        return []
    return [f"parity: golden cases that no adapter compares: {len(cases)}", *cases]
