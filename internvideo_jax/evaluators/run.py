"""Running a set of evaluators and writing down what they found."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.clips.seconds import of_views
from data_pipelines.records.storage import write_atomic
from internvideo_jax.evaluators.base import (
    ANIMATED,
    EvalContext,
    held_out_warning,
)
from internvideo_jax.evaluators.per_video import jsonl, sheet
from internvideo_jax.inference.quantized import stated
from internvideo_jax.parallel.multihost import is_main
from internvideo_jax.tasks import Evaluator, Result
from internvideo_jax.telemetry.pictures import write_gif, write_png
from internvideo_jax.types import (
    Params,
    Plain,
)

RESULTS = "results"
PICTURES = "pictures"
PER_VIDEO = ("off", "top5", "scores")  # what is written of every video


def check_evaluators(evaluators: Mapping[str, Evaluator], context: EvalContext) -> None:
    """Opens everything that the evaluators will read, so that errors come before the first step.

    Says where a set has no split kept from training, and what is measured is of training clips.

    Raises:
      ValueError: data that are missing or do not fit; names the evaluator.
    """
    warnings: dict[str, list[str]] = {}
    for label, evaluator in evaluators.items():
        if evaluator.every < 0:
            continue
        try:
            for source in evaluator.inputs():
                stream = context.open(source)
                stream.close()
                place = stream.dataset.manifest
                if not source.split and (
                    text := held_out_warning(place.splits, stream.dataset.split)
                ):
                    warnings.setdefault(f"{place.directory}: {text}", []).append(label)
            evaluator.check(context)
        except (ValueError, OSError, ImportError) as error:
            raise ValueError(
                f"config.evals.{label}: {error} (to leave it out: --config.evals.{label}.every=-1)"
            ) from error
    if is_main():
        for text, labels in warnings.items():
            print(
                f"warning: evaluators {', '.join(labels)}: {text}. An ingest with --hold-out keeps "
                "a part of the videos for them",
                flush=True,
            )


def run_evaluators(
    evaluators: Mapping[str, Evaluator],
    context: EvalContext,
    params: Params,
    *,
    folder: Path,
    provenance: Mapping[str, Any],
    per_video: str = PER_VIDEO[0],
    earlier: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> dict[str, Result]:
    """Runs every evaluator on `params`.

    Writes `folder/results/LABEL.json` (metrics, protocol, provenance) and pictures and
    CSV sheets below `folder/pictures`, replacing those of an earlier run.

    Args:
      per_video: one of PER_VIDEO: what `folder/results/LABEL-videos.jsonl` and .csv say of every
        video of those evaluators that score classes.
      earlier: metrics of what the evaluators found earlier in the same run, by label.
    """
    context.params = params
    results = {}
    for label, evaluator in evaluators.items():
        context.look_anew()
        context.earlier = (earlier or {}).get(label, ())
        found = with_seconds(evaluator.run(context), evaluator, context)
        results[label] = dataclasses.replace(found, pixels=context.seen.content())
        if is_main():
            write_result(folder, label, evaluator, results[label], provenance)
            if per_video != PER_VIDEO[0]:
                write_videos(folder, label, results[label], every=per_video == "scores")
    context.params, context.earlier = None, ()
    return results


def with_seconds(result: Result, evaluator: Evaluator, context: EvalContext) -> Result:
    """The result, whose protocol says how many seconds the clips span that were tested, and with
    which numbers, where these are not floats."""
    if numbers := stated(context.model):
        result = dataclasses.replace(result, protocol={**result.protocol, **numbers})
    sources = [each for each in evaluator.inputs() if "video" in each.parts]
    if not sources:
        return result
    source = sources[-1]
    spans = of_views(context.dataset(source).frame_times, source.views)
    if not spans.videos:
        return result
    return dataclasses.replace(result, protocol={**result.protocol, "seconds": spans.as_plain()})


def write_result(
    folder: Path,
    label: str,
    evaluator: Evaluator,
    result: Result,
    provenance: Mapping[str, Any],
) -> None:
    """One JSON file per evaluator; pictures and sheets in `folder/pictures`."""
    files = drawings(label, result)
    for name, picture in result.pictures.items():
        write_png(folder / files[name], picture)
    for name, clip in result.animations.items():
        write_gif(folder / files[f"{name}{ANIMATED}"], clip)
    for name, table in result.sheets.items():
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        (folder / PICTURES / f"{label}-{name}.csv").write_text(table, encoding="utf-8")
    write_json(
        folder / RESULTS / f"{label}.json",
        {
            "evaluator": evaluator.name,
            "metrics": dict(result.metrics),
            "protocol": dict(result.protocol),
            "pixels": dict(result.pixels),
            "tables": dict(result.tables),
            "pictures": files,
            "captions": dict(result.captions),
            **({"alarm": result.alarm} if result.alarm else {}),
            **provenance,
        },
    )


def drawings(label: str, result: Result) -> dict[str, str]:
    """name -> file below the folder of an evaluator's pictures and animations."""
    still = {name: f"{PICTURES}/{label}-{name}.png" for name in result.pictures}
    moving = {f"{name}{ANIMATED}": f"{PICTURES}/{label}-{name}.gif" for name in result.animations}
    return still | moving


def write_videos(folder: Path, label: str, result: Result, *, every: bool) -> None:
    """A row per video as JSONL and as CSV; nothing for tasks that do not score classes."""
    place = folder / RESULTS / f"{label}-videos"
    if result.scored is None:
        print(f"{label}: gives no scores of single videos", flush=True)
        return
    rows = list(result.scored.rows(every=every))
    for suffix, text in ((".jsonl", jsonl(rows)), (".csv", sheet(rows))):
        write_atomic(str(place.with_suffix(suffix)), text.encode("utf-8", "replace"))


def write_json(path: Path, content: Plain) -> None:
    """Atomically, so that a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def headline(results: Mapping[str, Result]) -> str:
    """`test: top1 0.912, top5 1.000 | knn: top1 0.5` for the log; what to beware of beside it."""
    parts = []
    for label, result in results.items():
        values = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        warning = "; ".join(filter(None, (result.protocol.get("warning", ""), result.alarm)))
        parts.append(f"{label}: {values}" + (f" (warning: {warning})" if warning else ""))
    return " | ".join(parts)
