"""What every benchmark says of the machine, and when it refuses to conclude.

    host = Host()                  # at the start: versions, processor, load
    ...
    row = spread(seconds)          # median and quartiles of repeated measurements
    sys.exit(host.verdict(passed, anyway=options.anyway))

A machine is quiet when, before the first measurement and without this process, less than a tenth of
its cores is busy. Exit codes: 0 targets met or none, 1 targets missed, 3 the host was busy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

import numpy as np

BUSY_EXIT = 3
BUSY_SHARE = 0.1  # of all cores, used by others
SAMPLE_SECONDS = 1.0
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "libtpu", "orbax-checkpoint", "av")


@dataclasses.dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    count: int

    def text(self, unit: str = "s") -> str:
        """`1.234 s (1.220 to 1.251, 20 times)`: median, quartiles."""
        return (
            f"{self.median:.4g} {unit} ({self.low:.4g} to {self.high:.4g}, {self.count} "
            f"time{'s' if self.count > 1 else ''})"
        )


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; ValueError without values."""
    if not values:
        raise ValueError("nothing was measured")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Of measurements taken in turns: the spread of theirs[i] / ours[i]."""
    return spread(list(np.divide(theirs, ours)))


def processor() -> str:
    """Model name of the CPU and its cores."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux
    return f"{name}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Of Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load() -> float:
    """Load average of the last minute; 0 where the system has none."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def busy_share(seconds: float = SAMPLE_SECONDS) -> float:
    """Share of all cores that other processes use now, looked at for `seconds`.

    The load average would remember what ended a minute ago. From /proc/stat, time stolen by other
    guests of the machine included; 0 where that is missing.
    """

    def read() -> tuple[float, float] | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        ticks = [float(field) for field in fields]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # idle, waiting for disks

    before, own = read(), time.process_time()
    time.sleep(seconds)
    after, own = read(), time.process_time() - own
    if before is None or after is None or after[1] == before[1]:
        return 0.0
    share = (after[0] - before[0]) / (after[1] - before[1])
    return max(share - own / seconds / (os.cpu_count() or 1), 0.0)


class Host:
    """The machine during one benchmark. Prints what it is; make one before measuring."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.load_before, self.busy = load(), busy_share()
        self.versions, self.processor = versions(), processor()
        if not quiet:
            print(self.text(), flush=True)

    def is_quiet(self) -> bool:
        return self.busy <= BUSY_SHARE

    def text(self) -> str:
        listed = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"host: {self.processor}; load average {self.load_before:.2f}; others use "
            f"{100 * self.busy:.0f} % of the cores\nversions: {listed}"
        )

    def facts(self) -> dict[str, object]:
        """For a JSON file."""
        return {
            "processor": self.processor,
            "load_before": self.load_before,
            "load_after": load(),
            "busy_share": self.busy,
            "quiet": self.is_quiet(),
            "versions": self.versions,
        }

    def verdict(self, missed: Sequence[str] = (), *, targets: int = 0, anyway: bool = False) -> int:
        """Prints what follows from the measurements; the exit code.

        Args:
          missed: targets that were missed, a line each.
          targets: how many there were.
          anyway: conclude on a busy host too.
        """
        print(f"load average {self.load_before:.2f} before, {load():.2f} after")
        if not self.is_quiet() and not anyway:
            print(
                f"no conclusion: others used {100 * self.busy:.0f} % of the cores when this began "
                f"(at most {100 * BUSY_SHARE:.0f} %). Run it on a quiet host, or with --anyway"
            )
            return BUSY_EXIT
        for line in missed:
            print(f"MISSED {line}")
        if targets:
            print(f"{len(missed)} of {targets} targets missed")
        return 1 if missed else 0


def memory_mib() -> dict[str, float]:
    """Resident memory of this process: the largest so far, and since `forget_peak`; Linux."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "VmHWM":
            found["peak_mib"] = float(value.split()[0]) / 1024
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"process_peak_mib": whole, "steps_peak_mib": found.get("peak_mib", whole)}


def forget_peak() -> None:
    """Lets `steps_peak_mib` start anew, so that it does not contain the compiler's memory."""
    with contextlib.suppress(OSError):  # then it is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
