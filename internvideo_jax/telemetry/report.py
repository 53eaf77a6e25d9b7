"""One HTML page about one or several runs; opens offline, pictures inside.

ivj report runs/a runs/b --out report.html
ivj report runs/a --against=runs/b            # or a reference: ivj reference --list
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from data_pipelines.commands.arguments import Parser
from data_pipelines.commands.exit_codes import ExitCode
from data_pipelines.records import storage
from data_pipelines.records.outputs import check_file
from data_pipelines.records.trees import Outbox
from internvideo_jax.telemetry.against import Verdict, verdict
from internvideo_jax.telemetry.curves import names
from internvideo_jax.telemetry.pictures import curve_svg
from internvideo_jax.telemetry.writer import METRICS, PERF, read_rows

TEMPLATE = Path(__file__).with_name("report.html")
MIME = {".png": "image/png", ".gif": "image/gif"}
# Drawn for every run, where there are values.
CURVES = {
    "train/loss": "training loss",
    "train/accuracy": "training accuracy",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
    "perf/clips_per_second": "clips per second",
    "perf/data_wait": "share of time waiting for data",
}
PARTS = ("run.json", METRICS, PERF, "results", "pictures")  # of a workdir, that the page is made of
_NO_RUN = "{}: no run.json here; expected the --workdir of a training run"
SMOOTHING = 5  # rows in the running mean of noisy curves


Place = str | os.PathLike[str]


def write_report(
    workdirs: Sequence[Place],
    out: Place,
    title: str = "",
    names: Sequence[str] = (),
    verdicts: Sequence[Verdict] = (),
) -> Place:
    """Writes the page and returns its path.

    Args:
      workdirs, out: local, or on an object store.
      names: of the runs; by default those of their directories.
      verdicts: comparisons with references, of all runs or none.

    Raises:
      ValueError: a directory that holds no run.
    """
    runs = [_open_run(workdir) for workdir in workdirs]
    for run, name in zip(runs, names, strict=bool(names)):
        run["name"] = name
    for run, compared in zip(runs, verdicts, strict=bool(verdicts)):
        run["against"] = compared
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    text = page.render(
        title=title or ", ".join(run["name"] for run in runs),
        runs=runs,
        comparison=_compare(runs) if len(runs) > 1 else None,
    )
    storage.make_directory(os.path.dirname(os.fspath(out)) or ".")
    storage.write_atomic(out, text.encode())
    return out


def _open_run(workdir: Place) -> dict[str, Any]:
    if not storage.is_remote(workdir):
        return _read_run(Path(storage.local(workdir)))
    with Outbox(workdir) as copy:
        copy.pull(only=PARTS)
        if not (copy.local / "run.json").exists():
            raise ValueError(_NO_RUN.format(copy.place))
        return {**_read_run(copy.local), "name": copy.place.rpartition("/")[2]}


def _read_run(workdir: Path) -> dict[str, Any]:
    description = workdir / "run.json"
    if not description.exists():
        raise ValueError(_NO_RUN.format(workdir))
    about = json.loads(description.read_text(encoding="utf-8"))
    metrics, perf = read_rows(workdir / METRICS), read_rows(workdir / PERF)
    results = [
        {"label": path.stem, **json.loads(path.read_text(encoding="utf-8"))}
        for path in sorted((workdir / "results").glob("*.json"))
    ]
    for result in results:
        result["images"] = [
            (name, inline(workdir / place), result.get("captions", {}).get(name, ""))
            for name, place in result["pictures"].items()
        ]
    return {
        "name": workdir.name,
        "about": about,
        "config": json.dumps(about["config"], indent=1),
        "steps": metrics[-1]["step"] if metrics else 0,
        "results": results,
        "curves": [*_train_curves(metrics + perf), *_eval_curves(metrics)],
        "loss": series(metrics, "train/loss"),
    }


def inline(path: Path) -> str:
    """A picture as an address that holds it."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"data:{MIME[path.suffix]};base64,{data}"


def series(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have `key`."""
    found = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in found], [value for _, value in found]


def _train_curves(rows: list[dict[str, Any]]) -> list[str]:
    drawn = []
    for key, title in CURVES.items():
        steps, values = series(rows, key)
        if len(steps) < 2:
            continue
        curves = {title: (steps, values)}
        if len(values) > 4 * SMOOTHING and key != "train/lr":
            curves[f"mean of {SMOOTHING}"] = (steps, _running_mean(values))
        drawn.append(curve_svg(title, curves))
    return drawn


def _eval_curves(rows: list[dict[str, Any]]) -> list[str]:
    keys = sorted({key for row in rows for key in row if key.startswith("eval/")})
    drawn = []
    for key in keys:
        steps, values = series(rows, key)
        if len(steps) > 1:
            drawn.append(curve_svg(key, {key: (steps, values)}))
    return drawn


def _running_mean(values: list[float]) -> list[float]:
    return [
        sum(part) / len(part)
        for i in range(len(values))
        if (part := values[max(0, i - SMOOTHING + 1) : i + 1])
    ]


def _compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All metrics in one table, a column for each run, and the loss curves over each other."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for column, run in enumerate(runs):
        for result in run["results"]:
            for name, value in result["metrics"].items():
                found.setdefault((result["label"], name), {})[column] = value
    rows = [
        (label, name, [values.get(column) for column in range(len(runs))])
        for (label, name), values in sorted(found.items(), key=lambda item: item[0][0])
    ]
    curves = {run["name"]: run["loss"] for run in runs if len(run["loss"][0]) > 1}
    loss = curve_svg("training loss", curves) if curves else ""
    return {"names": [run["name"] for run in runs], "rows": rows, "loss": loss}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: writes the page; 1 where a run parts from what it is compared with."""
    parser = Parser(
        prog="ivj report",
        description="Write one HTML page about one or several training runs. With --against: exit "
        "code 0 if every run stays in the band of the reference, 1 if one parts from it.",
    )
    parser.add_argument("workdirs", nargs="+", help="directories given as --workdir")
    parser.add_argument("--out", default="report.html")
    parser.add_argument("--title", default="", help="heading; default: the names of the runs")
    parser.add_argument(
        "--against",
        default="",
        metavar="RUN",
        help="another run, the file of a reference, or the name of one that comes with the package "
        f"({', '.join(names()) or 'none here'}): says whether and at which step the runs part "
        "from it",
    )
    options = parser.parse_args(arguments)
    try:
        check_file("--out", options.out, remote=True)
        verdicts = [verdict(each, options.against) for each in options.workdirs if options.against]
        for each in verdicts:
            print("\n".join(each.lines))
        print(write_report(options.workdirs, options.out, options.title, verdicts=verdicts))
        return ExitCode.BAD_DATA if any(each.parts for each in verdicts) else ExitCode.GOOD
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.USAGE


if __name__ == "__main__":
    sys.exit(main())
