"""Curves of runs, bands made of several of them, and where a run leaves a band. Plain Python."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.records import storage
from data_pipelines.records.trees import Outbox
from internvideo_jax.telemetry.writer import METRICS, read_rows

REFERENCES = Path(__file__).with_name("references")
LOSS = "train/loss"
# Compared beside what a reference names itself.
TRAINING = (LOSS, "train/grad_norm")
WIDTH = 5.0  # standard deviations from the mean to the edge of a band
LEAST = 1e-3  # and at least this share of the mean
WINDOW = 5  # rows over which a deviation is pooled: of one row of few runs it says little
PATIENCE = 3  # rows in a row outside a band before a run counts as having left it

Series = dict[int, float]  # step -> value


@dataclasses.dataclass(frozen=True)
class Band:
    """Where the curves of a reference lie.

    Attributes:
      steps: ascending; the other three have a value for each.
    """

    steps: tuple[int, ...]
    centre: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Curves:
    """What a run, or several of one recipe, left.

    Attributes:
      name: of the workdir or the reference.
      config: resolved, as in `run.json`.
      data: identity of the stream.
      versions: of the packages.
      series: metric -> one curve per seed.
      seeds: of the runs; empty of a run that is no reference.
      about: what else is known of a reference; `metrics`: those of evaluators that are compared,
        and half the width of their bands at least.
    """

    name: str
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, str]
    series: Mapping[str, tuple[Series, ...]]
    seeds: tuple[int, ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def band(self, metric: str) -> Band:
        """Mean of the seeds and its surroundings; of one run, its running mean and theirs."""
        curves = self.series[metric]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = [[curve[step] for curve in curves] for step in steps]
        if len(curves) > 1:
            centre = [sum(row) / len(row) for row in values]
            squares = [
                sum((value - mean) ** 2 for value in row) / (len(row) - 1)
                for row, mean in zip(values, centre, strict=True)
            ]
            among = math.sqrt(1 + 1 / len(curves))  # that of a further run from the mean
        else:
            centre = _pooled([row[0] for row in values])
            squares = [(row[0] - mean) ** 2 for row, mean in zip(values, centre, strict=True)]
            among = math.sqrt(2.0)  # both runs have such noise
        margin = self.about.get("metrics", {}).get(metric, 0.0)
        half = [
            max(WIDTH * among * math.sqrt(square), LEAST * abs(mean), margin)
            for square, mean in zip(_pooled(squares), centre, strict=True)
        ]
        return Band(
            tuple(steps),
            tuple(centre),
            tuple(mean - each for mean, each in zip(centre, half, strict=True)),
            tuple(mean + each for mean, each in zip(centre, half, strict=True)),
        )


def _pooled(values: Sequence[float]) -> list[float]:
    """Means over WINDOW values around each."""
    side = WINDOW // 2
    return [
        sum(part) / len(part)
        for i in range(len(values))
        if (part := values[max(0, i - side) : i + side + 1])
    ]


@dataclasses.dataclass(frozen=True)
class BandComparison:
    """One metric of a run beside a band.

    Attributes:
      compared: steps that both have.
      step: the first one of those at which the run has left the band; 0: it has not.
      found: value of the run there. expected: (centre, low, high) there.
      last: values of the run and of the centre at the last step compared.
    """

    metric: str
    compared: tuple[int, ...]
    step: int = 0
    found: float = 0.0
    expected: tuple[float, float, float] = (0.0, 0.0, 0.0)
    last: tuple[float, float] = (0.0, 0.0)

    def text(self) -> str:
        """In words."""
        if not self.compared:
            return f"{self.metric}: not compared, the run has no value at a step of the reference"
        many = f"{len(self.compared)} steps compared"
        if not self.step:
            return f"{self.metric}: in the band at all {many}"
        _, low, high = self.expected
        where = "above" if self.found > high else "below" if self.found < low else "not finite,"
        return (
            f"{self.metric}: leaves the band at step {self.step} ({many}), where it is "
            f"{self.found:.4g}, {where} {low:.4g} to {high:.4g}; at step {self.compared[-1]} it is "
            f"{self.last[0]:.4g} where {self.last[1]:.4g} was expected"
        )


def compare(run: Curves, reference: Curves, metric: str) -> BandComparison:
    """Where the run leaves the band of the reference, for PATIENCE rows or to its end."""
    band = reference.band(metric)
    (curve,) = run.series.get(metric, ({},))
    rows = [row for row in zip(*dataclasses.astuple(band), strict=True) if row[0] in curve]
    if not rows:
        return BandComparison(metric, ())
    steps = tuple(row[0] for row in rows)
    last = curve[steps[-1]], rows[-1][1]
    outside = [not low <= curve[step] <= high for step, _, low, high in rows]
    needed = min(PATIENCE, len(rows))
    for at in range(len(rows) - needed + 1):
        if all(outside[at : at + needed]):
            step, centre, low, high = rows[at]
            return BandComparison(metric, steps, step, curve[step], (centre, low, high), last)
    return BandComparison(metric, steps, last=last)


def metrics_of(run: Curves, reference: Curves) -> list[str]:
    """What is compared: losses and gradients, then everything that evaluators measured in both."""
    evaluated = [name for name in sorted(reference.series) if not name.startswith("train/")]
    chosen = reference.about.get("metrics")
    if chosen is None:
        evaluated = [name for name in evaluated if name in run.series]
    else:
        evaluated = [name for name in evaluated if name in chosen]
    return [*(name for name in TRAINING if name in reference.series), *evaluated]


def of_run(workdir: str | os.PathLike[str]) -> Curves:
    """The curves of a workdir, local or on an object store; ValueError where there is no run."""
    if not storage.is_remote(workdir):
        return _of_folder(Path(storage.local(workdir)), os.fspath(workdir))
    with Outbox(workdir) as copy:
        copy.pull(only=("run.json", METRICS))
        name = copy.place.rpartition("/")[2]
        return dataclasses.replace(_of_folder(copy.local, copy.place), name=name)


def _of_folder(workdir: Path, place: str) -> Curves:
    description = workdir / "run.json"
    if not description.exists():
        raise ValueError(f"{place}: no run.json here; expected the --workdir of a training run")
    about = json.loads(description.read_text(encoding="utf-8"))
    series: dict[str, Series] = {}
    for row in read_rows(workdir / METRICS):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, {})[row["step"]] = value
    if LOSS not in series:
        raise ValueError(
            f"{storage.join(place, METRICS)}: has no {LOSS} yet; expected a run that has begun"
        )
    return Curves(
        workdir.name,
        about["config"],
        about.get("data", {}),
        about.get("versions", {}),
        {name: (curve,) for name, curve in series.items()},
    )


def names() -> list[str]:
    """Of the references that come with the package."""
    return sorted(path.stem for path in REFERENCES.glob("*.json"))


def stored(path: Path) -> Curves:
    """A reference as `as_json` wrote it; ValueError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        series = {
            metric: tuple(
                dict(zip(curve["steps"], values, strict=True)) for values in curve["values"]
            )
            for metric, curve in content["curves"].items()
        }
        known = {name: content[name] for name in ("name", "config", "data", "versions")}
        about = {key: content[key] for key in content if key not in (*known, "curves")}
        return Curves(**known, series=series, seeds=tuple(content["seeds"]), about=about)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: is no reference ({type(error).__name__}: {error}); expected a file that "
            "`ivj reference NAME --write=FILE` wrote"
        ) from error


def find(name: str) -> Curves:
    """What `--against` names: a run, the file of a reference, or one that the package has."""
    place = Path(name)
    if storage.exists(storage.join(name, "run.json")):
        return of_run(name)
    if place.is_file():
        return stored(place)
    if (REFERENCES / f"{name}.json").is_file():
        return stored(REFERENCES / f"{name}.json")
    raise ValueError(
        f"--against={name}: is no run, no file and none of the references {', '.join(names())}"
    )


def as_json(runs: Sequence[Curves], name: str, about: Mapping[str, Any]) -> str:
    """Several runs of one recipe as the text of a reference; see `Curves` for its parts.

    Args:
      about: what else is said of it: `seeds`, `metrics` as `Curves.about` has it, and whatever
        describes the runs.
    """
    first = runs[0]
    kept = [metric for metric in (*TRAINING, *about["metrics"]) if metric in first.series]
    curves = {}
    for metric in kept:
        steps = sorted(first.series[metric][0])
        values = [[float(f"{run.series[metric][0][step]:.6g}") for step in steps] for run in runs]
        curves[metric] = {"steps": steps, "values": values}
    content = {
        "name": name,
        **about,
        "versions": first.versions,
        "data": first.data,
        "config": first.config,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in curves.items())
    return "{\n" + ",\n".join(lines) + ',\n "curves": {\n' + rows + "\n }\n}\n"
