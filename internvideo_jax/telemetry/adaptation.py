"""The page about an adaptation: the answer, the probes on both sides, curves and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2

from internvideo_jax.telemetry.pictures import curve_svg
from internvideo_jax.telemetry.report import inline, series
from internvideo_jax.telemetry.writer import METRICS, read_rows

TEMPLATE = Path(__file__).with_name("adaptation.html")
CURVES = {"train/loss": "training loss", "train/lr": "learning rate"}
PICTURES = 3  # of an evaluator, the first ones


def write_page(
    content: Mapping[str, Any], sides: Sequence[Path], runs: Mapping[str, Path], out: Path
) -> Path:
    """Writes the page, which opens offline, and returns its path.

    Args:
      content: what adapt.json holds.
      sides: folders of the evaluators' results before and after.
      runs: workdir of every training run, by what it is called.
    """
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    text = page.render(
        **content,
        rows=[
            (label, name, *map(_cell, (found["before"], found["after"])), _gain(found))
            for label, metrics in content["metrics"].items()
            for name, found in metrics.items()
        ],
        pairs=_pictures(sides),
        curves=list(_curves(runs)),
    )
    out.write_text(text, encoding="utf-8")
    return out


def _cell(values: Sequence[float]) -> str:
    each = ", ".join(f"{value:.4g}" for value in values)
    if len(values) < 2:
        return each
    return f"{fmean(values):.4g} (sd {stdev(values):.2g}: {each})"


def _gain(found: Mapping[str, Sequence[float]]) -> str:
    return f"{fmean(found['after']) - fmean(found['before']):+.4g}"


def _curves(runs: Mapping[str, Path]) -> Sequence[str]:
    rows = {name: read_rows(folder / METRICS) for name, folder in runs.items()}
    drawn = []
    for key, title in CURVES.items():
        found = {name: series(each, key) for name, each in rows.items()}
        if all(len(steps) > 1 for steps, _ in found.values()):
            drawn.append(curve_svg(title, found))
    return drawn


def _pictures(sides: Sequence[Path]) -> list[tuple[str, list[str], str]]:
    """(name, one picture per side, caption) of what the evaluators drew on both."""
    found: dict[str, list[tuple[str, str]]] = {}
    for folder in sides:
        for place in sorted((folder / "results").glob("*.json")):
            result = json.loads(place.read_text(encoding="utf-8"))
            still = [item for item in result["pictures"].items() if item[1].endswith(".png")]
            for name, picture in still[:PICTURES]:
                shown = inline(folder / picture), result.get("captions", {}).get(name, "")
                found.setdefault(f"{place.stem} {name}", []).append(shown)
    return [
        (name, [picture for picture, _ in pair], pair[0][1])
        for name, pair in found.items()
        if len(pair) == len(sides)
    ]
