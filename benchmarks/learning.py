"""What helps fine-tuning, beyond chance and beyond luck? Accuracy over several seeds.

    python benchmarks/learning.py --out learning_out --seeds 3 4 5

Every seed has its own world, initial weights, masks and order; within a seed every row fine-tunes
on the same labelled clips for the same number of steps. VideoMAE starts from random weights or from
its pre-training on the pixels alone; UniFormerV2 from random weights or from learning what the
clips show (colour and shape, 25 classes), which says nothing about the ten actions: the part that
CLIP plays for the published models. Each with and without layer-wise decay of the learning rate,
and mixup with CutMix.

Ends with an error unless every VideoMAE from its pre-training (plain) beats every one from random
weights, by a mean margin that exceeds the larger standard deviation over seeds. For UniFormerV2 the
margin is reported whatever it is: what it learns first is another task, not a part of this one.
About a quarter of an hour per seed on two cores; starting again continues. `--rows` picks rows by a
part of their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]
VIDEOMAE, UNIFORMERV2 = (
    "configs/videomae/finetune.py:size=tiny",
    "configs/uniformerv2/finetune.py:size=tiny",
)
STEPS = {"videomae": 600, "uniformerv2": 300}
CHANGES = {
    "layer decay": ("--config.optim.layer_decay=0.75",),
    "mixup": ("--config.objective.mixup=0.8", "--config.objective.cutmix=1.0"),
}
# Layer decay keeps lower layers close to where they start, which makes no sense for random weights.
ROWS = (
    ("random", ()),
    ("random", ("mixup",)),
    ("pretrained", ()),
    ("pretrained", ("layer decay",)),
    ("pretrained", ("mixup",)),
    ("pretrained", ("layer decay", "mixup")),
)


@dataclasses.dataclass(frozen=True)
class Row:
    model: str
    start: str
    changes: tuple[str, ...]

    @property
    def name(self) -> str:
        return ", ".join((self.model, self.start, *self.changes))


def table() -> Iterator[Row]:
    for model in STEPS:
        for start, changes in ROWS:
            yield Row(model, start, changes)


def run(folder: Path, *command: object) -> None:
    """One command of the house, echoed, its output in a file; ends the benchmark if it fails."""
    words = [str(word) for word in command]
    print(f"$ python -m {shlex.join(words)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        sys.exit(f"the command ended with exit code {done.returncode}; see {folder}/log.txt")


def render(folder: Path, seed: int, train: int, test: int) -> Path:
    """The annotations of one seed's world, whose clips are rendered if need be."""
    annotations = folder / "videos" / "annotations.jsonl"
    if not annotations.exists():
        run(
            folder,
            "data_pipelines.synthetic",
            f"--out={annotations.parent}",
            f"--train={train}",
            f"--test={test}",
            f"--seed={seed}",
        )
    return annotations


def make_world(folder: Path, seed: int, train: int, test: int) -> dict[str, Path]:
    """Shards of one seed's clips with the actions as labels, and with what they show."""
    annotations = render(folder, seed, train, test)
    videos = annotations.parent
    look = videos / "look.jsonl"
    rows = [json.loads(line) for line in annotations.read_text().splitlines()]
    for row in rows:
        row["label"] = f"{row['colour']} {row['shape']}"
    look.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = {}
    for name, source, flags in (
        ("actions", annotations, ("--flip-changes-label",)),
        ("look", look, ()),
    ):
        shards[name] = folder / name
        run(
            folder,
            "data_pipelines.ingest",
            f"--source={source}",
            f"--out={shards[name]}",
            "--quality=95",
            "--name=world",
            *flags,
        )
    return shards


def train(
    workdir: Path, config: str, data: Path, seed: int, steps: int, *options: str
) -> Mapping[str, float]:
    """Metrics of a finished run, which is started or continued if need be."""
    result = workdir / "results" / "test.json"
    if not (workdir / "done").exists():
        run(
            workdir,
            "internvideo_jax.train",
            f"--config={config}",
            f"--workdir={workdir}",
            f"--config.data.train={data}",
            f"--config.steps={steps}",
            f"--config.seed={seed}",
            f"--config.data.seed={seed}",
            *options,
        )
        (workdir / "done").touch()
    return json.loads(result.read_text())["metrics"] if result.exists() else {}


def world_parser(about: str | None, out: str) -> argparse.ArgumentParser:
    """The arguments of what trains on worlds: where to, which seeds, how many clips."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(out), help="folder to fill")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=4000, help="clips to train on")
    parser.add_argument("--test", type=int, default=500, help="test clips")
    return parser


def accuracy(folder: Path, seed: int, rows: Sequence[Row], options: argparse.Namespace) -> dict:
    """Top-1 per row of one seed, and chance."""
    shards = make_world(folder, seed, options.train, options.test)
    starts: dict[tuple[str, str], Path] = {}
    if any(row.model == "videomae" and row.start == "pretrained" for row in rows):
        starts["videomae", "pretrained"] = folder / "videomae"
        train(
            folder / "videomae",
            "configs/videomae/pretrain.py:size=tiny",
            shards["actions"],
            seed,
            options.pretrain_steps,
        )
    if any(row.model == "uniformerv2" and row.start == "pretrained" for row in rows):
        starts["uniformerv2", "pretrained"] = folder / "uniformerv2"
        train(folder / "uniformerv2", UNIFORMERV2, shards["look"], seed, options.look_steps)
    found = {}
    for row in rows:
        config = VIDEOMAE if row.model == "videomae" else UNIFORMERV2
        start = starts.get((row.model, row.start), "")
        metrics = train(
            folder / row.name.replace(", ", "-").replace(" ", "_"),
            config,
            shards["actions"],
            seed,
            STEPS[row.model],
            f"--config.init_from={start}",
            *(flag for change in row.changes for flag in CHANGES[change]),
        )
        found[row.name] = metrics["top1"]
        found["chance"] = metrics["chance"]
        print(f"seed {seed}: {row.name}: {metrics['top1']:.3f}", flush=True)
    return found


def clear_margin(seeds: Mapping[int, Mapping[str, float]], model: str) -> tuple[float, bool]:
    """Mean gain of the plain pre-trained start, and whether luck of the seed cannot explain it."""
    columns = [
        [found[f"{model}, {start}"] for found in seeds.values()]
        for start in ("pretrained", "random")
    ]
    gain = mean(columns[0]) - mean(columns[1])
    spread = max(stdev(column) if len(column) > 1 else 0.0 for column in columns)
    return gain, min(columns[0]) > max(columns[1]) and gain > spread


def main() -> None:
    parser = world_parser(__doc__, "learning_out")
    parser.add_argument("--rows", default="", help="only rows whose name holds this text")
    parser.add_argument("--pretrain-steps", type=int, default=2000, help="of VideoMAE")
    parser.add_argument("--look-steps", type=int, default=600, help="of UniFormerV2's first task")
    options = parser.parse_args()
    rows = [row for row in table() if options.rows in row.name]
    if not rows:
        sys.exit(f"no row holds {options.rows!r}; rows: {'; '.join(row.name for row in table())}")
    out = options.out.absolute()
    seeds = {seed: accuracy(out / f"seed{seed}", seed, rows, options) for seed in options.seeds}

    print(
        f"\n| model | start | with | {' | '.join(f'seed {seed}' for seed in seeds)} | mean (sd) |"
    )
    print(f"|---|---|---|{'---|' * (len(seeds) + 1)}")
    for row in rows:
        values = [found[row.name] for found in seeds.values()]
        spread = f" ({stdev(values):.3f})" if len(values) > 1 else ""
        cells = " | ".join(f"{value:.3f}" for value in values)
        print(
            f"| {row.model} | {row.start} | {', '.join(row.changes)} | {cells} | "
            f"{mean(values):.3f}{spread} |"
        )
    margins = {}
    for model in STEPS:
        if {f"{model}, random", f"{model}, pretrained"} <= {row.name for row in rows}:
            gain, clear = clear_margin(seeds, model)
            margins[model] = {"gain": gain, "clear": clear}
            told = "beyond the spread over seeds" if clear else "within the spread, or a loss"
            print(f"{model}: the other start gains {gain:+.3f}, {told}")
    (out / "learning.json").write_text(
        json.dumps({"seeds": seeds, "margins": margins}, indent=1) + "\n"
    )
    if not margins.get("videomae", {"clear": True})["clear"]:
        sys.exit("pre-training VideoMAE did not help beyond the spread over seeds")


if __name__ == "__main__":
    main()
