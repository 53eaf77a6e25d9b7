"""Does contrastive training bring video and text together, beyond luck? From nothing, over seeds.

    python benchmarks/video_text.py --out video_text_out --seeds 0 1 2

Every seed has its own world of captioned clips. Five pairs of colour and shape, other ones for
every seed, are in no training clip; ViCLIP (`configs/viclip/pretrain.py:size=tiny`) is trained from
random weights on the captions of the rest, and a control on the same clips with the captions
shuffled among them. Then nothing more is trained: test clips are recognised among all 25
descriptions ("red triangles"), the five that were never seen reported apart, and found by their
captions.

Ends with an error unless every trained model beats every control on each number. About ten minutes
per seed on two cores; starting again continues.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from learning import ROOT, render, run, train, world_parser

from data_pipelines.config import ViewConfig
from data_pipelines.synthetic import COLOURS, SHAPES
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.evaluate import evaluate
from internvideo_jax.evaluators.retrieval import TextVideoRetrieval
from internvideo_jax.evaluators.zero_shot import ZeroShot

CONFIG = "configs/viclip/pretrain.py:size=tiny"
TEXTS = ("two {}", "three {}", "four {}")  # as the captions begin
RUNS = ("captions", "shuffled")
COLUMNS = ("unseen pairs", "seen pairs", "text to video R@1", "video to text R@1")


def unseen_pairs(seed: int) -> set[tuple[str, str]]:
    """Five (colour, shape), every colour and every shape once."""
    shapes = list(SHAPES)
    return {(colour, shapes[(i + seed) % len(shapes)]) for i, colour in enumerate(COLOURS)}


def make_shards(folder: Path, seed: int, training: int, test: int) -> dict[str, Path]:
    """Shards with the right captions, and with those of other clips; the test clips are the same.

    The label of a clip is what its caption calls the shapes: "red triangles".
    """
    annotations = render(folder, seed, training, test)
    unseen, draw = unseen_pairs(seed), np.random.default_rng(seed)
    rows = [json.loads(line) for line in annotations.read_text().splitlines()]
    for row in rows:
        row["label"] = " ".join(row["caption"].split()[1:3])
    kept = [row for row in rows if row["split"] == "test" or _pair(row) not in unseen]
    trained = [row for row in kept if row["split"] != "test"]
    shards = {}
    for name in RUNS:
        if name == "shuffled":
            order = draw.permutation(len(trained))
            captions = [trained[i]["caption"] for i in order]
            for row, caption in zip(trained, captions, strict=True):
                row["caption"] = caption
        source = annotations.parent / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in kept))
        shards[name] = folder / f"shards-{name}"
        run(
            folder,
            "data_pipelines.ingest",
            f"--source={source}",
            f"--out={shards[name]}",
            "--flip-changes-label",
            "--quality=95",
            "--name=world",
        )
    return shards


def _pair(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["colour"], row["shape"]


def test(workdir: Path, shards: Path, seed: int) -> dict[str, float]:
    """Recognition among all 25 descriptions, and retrieval both ways."""
    out = workdir.with_suffix(".json")
    if not out.exists():
        recipe = runpy.run_path(str(ROOT / CONFIG.partition(":")[0]))
        plain = recipe["get_config"](CONFIG.partition(":")[2]).to_dict()
        config: TrainConfig = to_typed(TrainConfig, plain)
        clip = dataclasses.replace(config.data.clip, sampling="uniform")
        views = ViewConfig(clip=clip, crop_rule="squash", batch=50)
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, train=str(shards)),
            evals={
                "recognition": ZeroShot(views=views, texts=TEXTS),
                "retrieval": TextVideoRetrieval(views=views),
            },
        )
        evaluate(config, str(workdir), out)
    results = json.loads(out.read_text())["results"]
    classes = results["recognition"]["tables"]["per_class"]
    unseen = {" ".join(pair) for pair in unseen_pairs(seed)}
    hits = {True: [], False: []}
    for name, row in classes.items():
        colour, shapes = name.split()
        single = next(shape for shape in SHAPES if shapes.startswith(shape))
        hits[f"{colour} {single}" in unseen].append((row["videos"], row["top1"]))
    found = {
        column: float(np.average([top1 for _, top1 in part], weights=[n for n, _ in part]))
        for column, part in zip(COLUMNS, (hits[True], hits[False]), strict=False)
    }
    retrieval = results["retrieval"]["metrics"]
    return {**found, COLUMNS[2]: retrieval["t2v_r1"], COLUMNS[3]: retrieval["v2t_r1"]}


def main() -> None:
    parser = world_parser(__doc__, "video_text_out")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    out = options.out.absolute()
    table: dict[str, dict[int, dict[str, float]]] = {name: {} for name in RUNS}
    for seed in options.seeds:
        folder = out / f"seed{seed}"
        shards = make_shards(folder, seed, options.train, options.test)
        for name in RUNS:
            workdir = folder / name
            train(workdir, CONFIG, shards[name], seed, options.steps)
            table[name][seed] = test(workdir, shards[name], seed)
            print(f"seed {seed}, {name}: {table[name][seed]}", flush=True)

    print(f"\n| trained on | seed | {' | '.join(COLUMNS)} |")
    print(f"|---|---|{'---|' * len(COLUMNS)}")
    for name, rows in table.items():
        for seed, row in rows.items():
            print(f"| {name} | {seed} | {' | '.join(f'{row[c]:.3f}' for c in COLUMNS)} |")
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in rows.values()]
            spread = f" ({stdev(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}")
        print(f"| {name} | mean (sd) | {' | '.join(cells)} |")
    pairs = len(COLOURS) * len(SHAPES)
    print(f"chance: {1 / pairs:.3f} for a pair, {1 / options.test:.3f} for a clip")
    (out / "video_text.json").write_text(json.dumps(table, indent=1) + "\n")
    for column in COLUMNS:
        trained, control = ([row[column] for row in table[name].values()] for name in RUNS)
        if min(trained) <= max(control):
            sys.exit(f"{column}: a control is as good as a trained model")
    print("every trained model beats every control on every number")


if __name__ == "__main__":
    main()
