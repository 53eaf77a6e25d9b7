"""One adaptation from beginning to end. Every phase leaves its result, and is not done again.

WORKDIR/plan.json        what was asked, the weights it starts from, the number of steps
WORKDIR/shards           the folder, ingested
WORKDIR/before/seed-S    the probes on the weights as they were
WORKDIR/seed-S           the training run, with the probes on what it left in after/
WORKDIR/adapt.json, report.html
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from data_pipelines.commands.lock import DirectoryLock
from data_pipelines.records.outputs import check_folder
from internvideo_jax.adapt import data, verdict
from internvideo_jax.adapt.going_on import check_given, check_objective, continued
from internvideo_jax.adapt.probing import Prober, evaluators
from internvideo_jax.checkpoint.initial import check_source
from internvideo_jax.checkpoint.reading import step_of
from internvideo_jax.checkpoint.run_folder import IN_USE
from internvideo_jax.config import TrainConfig, as_plain
from internvideo_jax.evaluators.run import write_json
from internvideo_jax.protocols import clip_of
from internvideo_jax.telemetry.adaptation import write_page
from internvideo_jax.telemetry.writer import PERF, read_rows
from internvideo_jax.train import train
from internvideo_jax.weights.folders import is_weights
from internvideo_jax.weights.named import resolve

PLAN, RESULT, PAGE = "plan.json", "adapt.json", "report.html"
TRIAL, TRIAL_LOG = 12, 2  # steps that say how long one takes, and between two readings
LEAST_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says.

    Attributes:
      source: folder, list or table of videos, or a directory of shards.
      weights: run, checkpoint, weight file, or the name of a published one.
      steps, minutes: of training for every seed; one of them is 0.
      seeds: of masks, order and probes.
      probes: evaluators, the one that decides first; empty: what the labels allow.
      rate: of the recipe's learning rate.
      hold_out: share of the source videos that is kept from training, where none is named.
      flip_changes_label: of a folder that is ingested.
    """

    source: str
    weights: str
    steps: int = 0
    minutes: float = 10.0
    seeds: tuple[int, ...] = (0,)
    probes: tuple[str, ...] = ()
    rate: float = 0.5
    hold_out: float = 0.2
    flip_changes_label: bool = False


def adapt(config: TrainConfig, asked: Asked, workdir: Path, given: Collection[str] = ()) -> int:
    """Probes, goes on training, probes again; 0, or the code of a run that was interrupted.

    Args:
      config: the recipe of the weights.
      given: fields of it that the command line sets.

    Raises:
      ValueError: weights, videos or settings that do not fit; another adaptation is in `workdir`.
      RuntimeError: an ingest or a run that could not finish.
    """
    check_folder("--workdir", workdir)
    check_given(given)
    check_objective(config, asked.weights)
    try:
        lock = DirectoryLock(str(workdir), "adapt.lock", IN_USE)
        with lock:
            return _locked(config, asked, workdir, given)
    except RuntimeError as error:
        if "is in use by process" in str(error):
            raise ValueError(str(error)) from None
        raise


def _locked(config: TrainConfig, asked: Asked, workdir: Path, given: Collection[str]) -> int:
    plan = _plan(config, asked, workdir)
    resolution = clip_of(config.model).resolution
    directory = data.shards_of(
        asked.source, workdir / "shards", resolution, asked.hold_out, asked.flip_changes_label
    )
    clips = data.clips_of(directory)
    names = asked.probes or clips.probes()
    data.check_probes(names, clips, config.objective.name)
    say(f"{clips.records} clips to train on, {clips.tested} to probe on; {clips.why()}")
    changed = {each.split(".")[1] for each in given if each.startswith("evals.")}
    probes = evaluators(config, names, clips, changed)
    prober = Prober(dataclasses.replace(config, evals=probes), probes)
    start = plan["start"]
    before = [_probed(prober, start, seed, workdir / f"before/seed-{seed}") for seed in asked.seeds]
    if before[0]["weights"]:
        say(before[0]["weights"])

    def going_on(steps: int, seed: int) -> TrainConfig:
        return continued(config, clips, start, steps=steps, seed=seed, rate=asked.rate, given=given)

    if not plan["steps"]:
        seconds = _step_seconds(going_on(TRIAL, asked.seeds[0]), workdir / "timing", given)
        if seconds is None:
            return 1
        plan = {**plan, "steps": max(LEAST_STEPS, round(asked.minutes * 60 / seconds))}
        write_json(workdir / PLAN, plan)
        say(f"a step takes {seconds:.3g} s: {plan['steps']} steps in {asked.minutes:g} minutes")
    after = []
    for seed in asked.seeds:
        run = workdir / f"seed-{seed}"
        if not _finished(run):
            say(f"seed {seed}: {plan['steps']} steps from {start}")
            if code := train(going_on(plan["steps"], seed), run, given):
                return code
        after.append(_probed(prober, str(run), seed, run / "after"))
    _report(asked, plan, clips, names, before, after, workdir)
    return 0


def _plan(config: TrainConfig, asked: Asked, workdir: Path) -> dict[str, Any]:
    """What is written down of it, or is written now; ValueError where it is another one."""
    wanted = json.loads(json.dumps({**dataclasses.asdict(asked), "config": as_plain(config)}))
    place = workdir / PLAN
    if place.exists():
        plan = json.loads(place.read_text(encoding="utf-8"))
        was = plan["asked"]
        other = [name for name in wanted if wanted[name] != was.get(name)]
        if other:
            name = other[0]
            how = "" if name == "config" else f": {was.get(name)!r} there, {wanted[name]!r} here"
            raise ValueError(
                f"{workdir} holds another adaptation, with another {name}{how}; go on with the "
                "command that it was begun with, or give another --workdir"
            )
        return plan
    check_source(asked.weights)
    found = resolve(asked.weights)
    start = str(found if is_weights(found) else step_of(found).path)
    plan = {"asked": wanted, "start": start, "steps": asked.steps}
    write_json(place, plan)
    return plan


def _probed(prober: Prober, weights: str, seed: int, folder: Path) -> dict[str, Any]:
    say(f"probing {weights}, seed {seed}")
    return prober.run(weights, seed, folder)


def _step_seconds(config: TrainConfig, folder: Path, given: Collection[str]) -> float | None:
    """Of one step, compilation left out; None where it was interrupted."""
    shutil.rmtree(folder, ignore_errors=True)
    say(f"{TRIAL} steps to see how long one takes")
    log = dataclasses.replace(config.log, every=TRIAL_LOG)
    if train(dataclasses.replace(config, log=log), folder, given):
        return None
    rows = read_rows(folder / PERF)
    shutil.rmtree(folder)
    return median(row["perf/step_seconds"] for row in rows if "perf/step_seconds" in row)


def _finished(run: Path) -> bool:
    place = run / "run.json"
    return place.exists() and "params_digest" in json.loads(place.read_text(encoding="utf-8"))


def _report(
    asked: Asked,
    plan: Mapping[str, Any],
    clips: data.Clips,
    names: Sequence[str],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    workdir: Path,
) -> None:
    """Says what was found, and writes it as JSON and as a page."""
    first = names[0]
    metric = data.headline(first, before[0]["results"][first]["metrics"])
    sides = [[each["results"][first] for each in side] for side in (before, after)]
    values, later = ([each["metrics"][metric] for each in side] for side in sides)
    known = all("hits" in each for side in sides for each in side)
    right = [np.array([each["hits"] for each in side]) for side in sides] if known else []
    hits = (right[0], right[1]) if known else None
    looked_at = before[0]["results"][first]["protocol"].get("clips", clips.tested)
    found = verdict.judge(first, metric, values, later, hits, looked_at)
    runs = {seed: str(workdir / f"seed-{seed}") for seed in asked.seeds}
    held_out = [
        each["metrics"]["held_out_top1"] for each in sides[1] if "held_out_top1" in each["metrics"]
    ]
    take = verdict.to_take(found, plan["start"], runs, held_out)
    content = {
        "verdict": found.plain(),
        "take": take,
        "start": plan["start"],
        "steps": plan["steps"],
        "seeds": list(asked.seeds),
        "rate": asked.rate,
        "data": dataclasses.asdict(clips),
        "probes": clips.why() if not asked.probes else ", ".join(names),
        "metrics": _table(before, after),
        "protocol": {label: each["protocol"] for label, each in before[0]["results"].items()},
        "runs": runs,
        "params_digest": {
            "before": before[0]["params_digest"],
            "after": [each["params_digest"] for each in after],
        },
    }
    write_json(workdir / RESULT, content)
    page = write_page(
        content, [workdir / f"before/seed-{asked.seeds[0]}", Path(runs[asked.seeds[0]]) / "after"],
        {f"seed {seed}": Path(run) for seed, run in runs.items()}, workdir / PAGE,
    )  # fmt: skip
    say(found.text())
    say(f"take {take}")
    say(f"written to {workdir / RESULT} and {page}")


def _table(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """label -> metric -> values of the seeds on both sides."""
    return {
        label: {
            metric: {
                "before": [each["results"][label]["metrics"][metric] for each in before],
                "after": [each["results"][label]["metrics"][metric] for each in after],
            }
            for metric in found["metrics"]
        }
        for label, found in before[0]["results"].items()
    }


def say(text: str) -> None:
    """Prints at once."""
    print(text, flush=True)
