"""What an audit compares with what."""

from __future__ import annotations

from dataclasses import dataclass

# Distance of two clips (audit/compare.py). Measured by benchmarks/duplicates.py: of real clips seen
# by one camera 331 of 336 copies lie below, and 1 in a thousand of other pairs (docs/audit.md).
THRESHOLD = 0.15


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """What is compared with what.

    Attributes:
      directory: the set that may hold what it should not.
      against: sets that it should hold nothing of; empty: its own splits against each other.
      splits, against_splits: those that count; empty: all of `directory`, and of the others those
        called test or val, or all where none is.
      within: whether copies in one split of `directory` count too.
      threshold: distance up to which two clips are the same.
      out: path of the results without ending.
      workers: processes that read shards.
    """

    directory: str
    out: str
    against: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    against_splits: tuple[str, ...] = ()
    within: bool = False
    threshold: float = THRESHOLD
    workers: int = 0
