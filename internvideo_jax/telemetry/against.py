"""A run beside a reference: what is drawn, and what is said of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from data_pipelines.stream.identity import differences
from internvideo_jax.telemetry import curves
from internvideo_jax.telemetry.pictures import curve_svg

# Fields that say where a run stands and how it is watched, not what it computes.
ASIDE = (
    "data.train",
    "data.eval",
    "data.reader",
    "checkpoint",
    "log",
    "watchdog",
    "profile",
    "max_nonfinite",
)
SEEDS = ("seed", "data.seed")
LISTED = 12  # differences of each kind that are printed


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a comparison.

    Attributes:
      parts: whether a metric left its band.
      lines: what is printed, the first one says it all.
      found: what was compared, of which run and reference.
    """

    parts: bool
    lines: tuple[str, ...]
    found: tuple[curves.BandComparison, ...]
    run: curves.Curves
    reference: curves.Curves

    @property
    def drawings(self) -> list[str]:
        """SVG: a picture of each metric, with the band."""
        return [_drawing(self.run, self.reference, each) for each in self.found if each.compared]


def verdict(workdir: str | os.PathLike[str], against: str) -> Verdict:
    """Compares a run with what `against` names (`curves.find`).

    Raises:
      ValueError: one of them is not there, or they have no step in common.
    """
    run, reference = curves.of_run(workdir), curves.find(against)
    found = [curves.compare(run, reference, metric) for metric in curves.metrics_of(run, reference)]
    if not found[0].compared:
        raise ValueError(
            f"{workdir} and {against} have no step of {curves.LOSS} in common: compare runs whose "
            "config.log.every has a common multiple within their lengths"
        )
    parted = sorted((each for each in found if each.step), key=lambda each: each.step)
    whole = len(found[0].compared)
    if parted:
        first = parted[0]
        head = f"{run.name} parts from {reference.name} at step {first.step}, in {first.metric}"
    else:
        head = f"{run.name} is in the band of {reference.name} at all {whole} steps compared"
    lines = [head, *(each.text() for each in found), _how(reference)]
    lines += _listed("config", _config(run, reference), "other settings")
    lines += _listed("data", _data(run, reference), "other stream")
    lines += _listed(
        "versions", differences(run.versions, reference.versions, "the reference has"), "others"
    )
    return Verdict(bool(parted), tuple(lines), tuple(found), run, reference)


def _how(reference: curves.Curves) -> str:
    width = f"{curves.WIDTH:g} standard deviations"
    if reference.seeds:
        return f"band: mean of {len(reference.seeds)} seeds and {width} of a further run around it"
    return f"band: {width} of the reference's own noise around its running mean, as it is one run"


def _config(run: curves.Curves, reference: curves.Curves) -> list[str]:
    """Settings that differ and are about what is computed."""
    aside = ASIDE + (SEEDS if reference.seeds else ())
    found = differences(run.config, reference.config, "the reference has")
    return [line for line in found if not _is_aside(line.partition(":")[0], aside)]


def _data(run: curves.Curves, reference: curves.Curves) -> list[str]:
    found = differences(run.data, reference.data, "the reference has")
    if not reference.seeds:
        return found
    return [line for line in found if line.partition(":")[0].rpartition(".")[2] != "seed"]


def _is_aside(path: str, aside: tuple[str, ...]) -> bool:
    return any(path == each or path.startswith(f"{each}.") for each in aside)


def _listed(what: str, found: list[str], alike: str) -> list[str]:
    if not found:
        return [f"{what}: no {alike}"]
    rest = len(found) - LISTED
    return [
        f"{what}: {len(found)} differ",
        *(f"  {line}" for line in found[:LISTED]),
        *([f"  and {rest} more"] if rest > 0 else []),
    ]


def _drawing(run: curves.Curves, reference: curves.Curves, found: curves.BandComparison) -> str:
    band = reference.band(found.metric)
    (curve,) = run.series[found.metric]
    lines: Mapping[str, Any] = {
        reference.name: (band.steps, band.centre),
        run.name if run.name != reference.name else f"{run.name} (this run)": (
            list(curve),
            list(curve.values()),
        ),
    }
    title = found.metric + (f", parts at step {found.step}" if found.step else "")
    return curve_svg(title, lines, band=(band.steps, band.low, band.high), mark=found.step)
