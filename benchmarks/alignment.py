"""Does aligning with frozen teachers teach a student anything? Attentive probes over seeds.

    python benchmarks/alignment.py --out alignment_out --seeds 0 1 2

Every seed has its own world. Two teachers are trained on its clips first: VideoMAE on the pixels of
8 frames, two to a token, and ViCLIP on the captions, with 4 frames. The student of
`configs/internvideo2/pretrain.py:size=tiny` then sees half of the tokens of 4 frames, one frame to
a token, and learns the teachers' features; no label is used. Beside it the same student with its
random weights, and a VideoMAE of the same encoder on the same 4 frames that reconstructs pixels
for as many FLOPs as the student with both teachers had (those of the teachers not counted). The
student of VideoMAE alone runs twice as long as the others: motion comes late.

All are frozen, and an attentive probe on their tokens learns what moves how (ten actions, which no
single frame shows) and what is shown (25 pairs of colour and shape) from the same labelled clips.
The probes of the teachers are in the table as well; VideoMAE's sees twice the frames.

Ends with an error unless on every seed the students of ViCLIP, alone and with VideoMAE, beat their
random weights at looks, what ViCLIP knows. What VideoMAE's students learn of actions, and whether
students beat pixels, is reported. About 25 minutes per seed on one core; starting again continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from learning import ROOT, make_world, train, world_parser

from data_pipelines.config import ViewConfig
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.evaluate import evaluate
from internvideo_jax.evaluators.probes import AttentiveProbe
from internvideo_jax.protocols import clip_of

STUDENT = "configs/internvideo2/pretrain.py:size=tiny,teachers="
VIDEOMAE = "configs/videomae/pretrain.py:size=tiny"
VICLIP = "configs/viclip/pretrain.py:size=tiny"
# The encoder and the clips of the student, for the two models that have other ones by default.
PIXELS = (
    "--config.model.frames=4",
    "--config.model.tubelet=1",
    "--config.data.clip.frames=4",
    "--config.data.clip.stride=4",
    "--config.evals.reconstruction.every=-1",
)
FOUR_FRAMES = (
    "--config.model.frames=4",
    "--config.data.clip.frames=4",
    "--config.evals.retrieval.every=-1",
)
RANDOM = ("--config.optim.lr=0.0", "--config.optim.min_lr=0.0", "--config.optim.warmup_steps=0")
TASKS = ("actions", "look")
ROWS = ("random", "pixels", "videomae", "viclip", "both", "teacher videomae", "teacher viclip")
LABELS = 1500  # labelled clips that a probe learns from


def recipe(config: str) -> TrainConfig:
    """The typed config of a recipe and its options."""
    file, _, options = config.partition(":")
    return to_typed(TrainConfig, runpy.run_path(str(ROOT / file))["get_config"](options).to_dict())


def probe(
    folder: Path, name: str, config: str, run: Path, shards: dict[str, Path], model: dict[str, Any]
) -> dict[str, float]:
    """Top-1 of both tasks on the frozen features of a run.

    Args:
      model: fields of config.model that the run had and its recipe does not.
    """
    out = folder / f"probe-{name.replace(' ', '-')}.json"
    if not out.exists():
        typed = recipe(config)
        typed = dataclasses.replace(typed, model=dataclasses.replace(typed.model, **model))
        frames = clip_of(typed.model).frames
        # All of them look at the same 13 frames of a video or more: every second or fourth.
        clip = dataclasses.replace(
            typed.data.clip, frames=frames, stride=16 // frames, sampling="dense"
        )
        views = ViewConfig(clip=clip, batch=50)
        evals = {
            task: AttentiveProbe(views=views, data=str(shards[task]), max_clips=LABELS)
            for task in TASKS
        }
        data = dataclasses.replace(typed.data, train=str(shards["actions"]))
        evaluate(dataclasses.replace(typed, data=data, evals=evals), str(run), out)
    results = json.loads(out.read_text())["results"]
    return {task: results[task]["metrics"]["top1"] for task in TASKS}


def accuracies(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Row -> task -> top-1 of one seed."""
    shards = make_world(folder, seed, options.train, options.test)
    data, found = shards["actions"], {}

    def check(name: str, config: str, run: Path, **model: Any) -> None:
        found[name] = probe(folder, name, config, run, shards, model)
        print(f"seed {seed}: {name}: {found[name]}", flush=True)

    teachers = {"mae": folder / "videomae", "clip": folder / "viclip"}
    train(teachers["mae"], VIDEOMAE, data, seed, options.videomae_steps)
    train(teachers["clip"], VICLIP, data, seed, options.viclip_steps, *FOUR_FRAMES)
    check("teacher videomae", VIDEOMAE, teachers["mae"])
    check("teacher viclip", VICLIP, teachers["clip"], frames=4)
    for name, used in (("videomae", ("mae",)), ("viclip", ("clip",)), ("both", ("mae", "clip"))):
        weights = (f"--config.objective.{each}_teacher.init_from={teachers[each]}" for each in used)
        student = folder / f"student-{name}"
        steps = options.steps * (2 if name == "videomae" else 1)
        train(student, STUDENT + name, data, seed, steps, *weights)
        check(name, STUDENT + name, student)
    nothing = (f"--config.objective.{each}_teacher.init_from=random" for each in teachers)
    train(folder / "random", STUDENT + "both", data, seed, 1, *RANDOM, *nothing)
    check("random", STUDENT + "both", folder / "random")
    train(folder / "pixels", VIDEOMAE, data, seed, pixel_steps(options.steps), *PIXELS)
    check("pixels", VIDEOMAE, folder / "pixels", frames=4, tubelet=1)
    return found


def pixel_steps(steps: int) -> int:
    """Steps of pixel reconstruction with the FLOPs of the student's `steps`, both of 32 clips."""
    student, pixels = recipe(STUDENT + "both"), recipe(VIDEOMAE)
    model = dataclasses.replace(pixels.model, frames=4, tubelet=1)
    return round(steps * student.objective.flops(student.model) / pixels.objective.flops(model))


def main() -> None:
    parser = world_parser(__doc__, "alignment_out")
    parser.add_argument("--steps", type=int, default=800, help="of the student")
    parser.add_argument("--videomae-steps", type=int, default=2000, help="of that teacher")
    parser.add_argument("--viclip-steps", type=int, default=400, help="of that teacher")
    options = parser.parse_args()
    out = options.out.absolute()
    seeds = {seed: accuracies(out / f"seed{seed}", seed, options) for seed in options.seeds}

    heads = [f"{task}, seed {seed}" for task in TASKS for seed in seeds]
    print(
        f"\n| features | {' | '.join(heads)} | actions | look |\n|---|{'---|' * (len(heads) + 2)}"
    )
    for row in ROWS:
        columns = [[found[row][task] for found in seeds.values()] for task in TASKS]
        cells = [f"{value:.3f}" for column in columns for value in column]
        for column in columns:
            spread = f" ({stdev(column):.3f})" if len(column) > 1 else ""
            cells.append(f"{mean(column):.3f}{spread}")
        print(f"| {row} | {' | '.join(cells)} |")
    print(f"pixels: {pixel_steps(options.steps)} steps for {options.steps} of the student")
    (out / "alignment.json").write_text(json.dumps(seeds, indent=1) + "\n")

    failed = []
    required = {("both", "look"), ("viclip", "look")}
    for row, task in (*sorted(required), ("both", "actions"), ("videomae", "actions")):
        gains = {
            other: [found[row][task] - found[other][task] for found in seeds.values()]
            for other in ("random", "pixels")
        }
        told = ", ".join(f"{mean(each):+.3f} to {other}" for other, each in gains.items())
        print(f"{row}, {task}: {told}; least {min(gains['random']):+.3f} to random")
        if (row, task) in required and min(gains["random"]) <= 0:
            failed.append(f"{row} at {task}")
    if failed:
        sys.exit(f"no better than random weights on every seed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
