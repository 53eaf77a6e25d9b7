"""Arguments that several commands have."""

import argparse
import os


def default_workers() -> int:
    """Cores this process may use, which in a container is often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def add_workers(parser: argparse._ActionsContainer, alone: str) -> None:
    """--workers: processes; `alone` is what this one does with 0."""
    parser.add_argument(
        "--workers",
        metavar="K",
        type=int,
        default=default_workers(),
        help=f"processes; 0 {alone} in this one (default: %(default)s, the cores available)",
    )


def add_max_bad(parser: argparse._ActionsContainer, bad: str) -> None:
    """--max-bad: the share of rows up to which a run counts as good; `bad` ends the help."""
    parser.add_argument(
        "--max-bad",
        metavar="SHARE",
        type=float,
        default=0.01,
        help=f"exit with 1 if {bad} (default: %(default)s)",
    )


def add_quiet(parser: argparse._ActionsContainer) -> None:
    """--quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
