"""Where the time goes: throughput, data wait, MFU, ETA."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import jax

from internvideo_jax.types import Tree

# Dense bf16 peak of one device in TFLOP/s, by what `device_kind` contains; first match counts.
PEAK_TFLOPS = (
    ("tpu7x", 1153.5),  # half a chip: each of its two dies is a device
    ("v7x", 1153.5),
    ("v6 lite", 918.0),
    ("v6e", 918.0),
    ("v5 lite", 197.0),
    ("v5e", 197.0),
    ("v5p", 459.0),
    ("v5", 459.0),
    ("v4", 275.0),
    ("h200", 989.0),
    ("h100", 989.0),
    ("a100", 312.0),
)


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices together, None where the kind is unknown (CPU)."""
    kind = jax.devices()[0].device_kind.lower()
    for name, tera in PEAK_TFLOPS:
        if name in kind:
            return tera * 1e12 * jax.device_count()
    return None


class Progress:
    """Measures between log points and renders the progress line.

    Args:
      total: steps of the run.
      batch: examples per step over all hosts, on average.
      flops: model FLOPs of one training example.
    """

    def __init__(self, total: int, batch: float, flops: float):
        self.total, self.batch, self.flops = total, batch, flops
        self._peak = peak_flops()
        self._waited = 0.0
        self._paused = 0.0
        self._since: tuple[float, int] | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around everything that waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self, settled: Tree) -> Iterator[None]:
        """Around evaluation and the like, which should not count as step time.

        Args:
          settled: what the steps before still compute. It is waited for first, as that is time of
            the steps, which whatever follows would wait for as well.
        """
        jax.block_until_ready(settled)
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def pace(self, step: int) -> float:
        """Seconds of a step since the last `lap`, which stays the last one; 0 if there is none."""
        if self._since is None or step <= self._since[1]:
            return 0.0
        started, first = self._since
        return max(time.perf_counter() - started - self._paused, 0.0) / (step - first)

    def lap(self, step: int) -> dict[str, float]:
        """`perf/...` values since the last call; empty on the first, which only starts the clock.

        The first step compiles, so measuring starts after it.
        """
        now = time.perf_counter()
        values = {}
        if self._since is not None and step > self._since[1]:
            started, first = self._since
            seconds = max(now - started - self._paused, 1e-9)
            steps = step - first
            rate = steps * self.batch / seconds
            values = {
                "perf/step_seconds": seconds / steps,
                "perf/clips_per_second": rate,
                "perf/data_wait": min(self._waited / seconds, 1.0),
                "perf/model_gflops_per_second": rate * self.flops / 1e9,
                "perf/eta_seconds": (self.total - step) * seconds / steps,
            }
            if self._peak is not None:
                values["perf/mfu"] = rate * self.flops / self._peak
        self._since, self._waited, self._paused = (now, step), 0.0, 0.0
        return values

    def line(self, step: int, metrics: Mapping[str, float], perf: Mapping[str, float]) -> str:
        """`step 400/2000 20% | loss 0.912 | lr 1.0e-03 | 210 clips/s | data wait 3% | ...`"""
        parts = [f"step {step}/{self.total} {100 * step // max(self.total, 1)}%"]
        for name, value in metrics.items():
            if name in ("train/nonfinite", "train/grad_norm") or not name.startswith("train/"):
                continue
            short = name.removeprefix("train/")
            parts.append(f"{short} {value:.2e}" if short == "lr" else f"{short} {value:.4f}")
        if perf:
            parts.append(f"{perf['perf/clips_per_second']:.4g} clips/s")
            parts.append(f"data wait {100 * perf['perf/data_wait']:.0f}%")
            if "perf/mfu" in perf:
                parts.append(f"MFU {100 * perf['perf/mfu']:.1f}%")
            else:
                # Without a known peak the achieved rate stands in for the MFU.
                parts.append(f"{perf['perf/model_gflops_per_second']:.4g} GFLOP/s")
            parts.append(f"ETA {clock(perf['perf/eta_seconds'])}")
        return " | ".join(parts)


def clock(seconds: float) -> str:
    """`1:02:03`"""
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
