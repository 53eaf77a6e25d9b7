"""A small run of a recipe beside its stored curves: does training work here as it should?

    ivj reference videomae-pretrain --workdir=runs/check

renders and ingests some clips of the built-in world below --workdir, trains for a minute or so as
the reference did, with a seed of its own, and says whether loss, gradient norm and the main metric
stay in the band of the stored seeds (`ivj report --against`). Exit code 0: they do, 1: they part.
Settings can be given to see what a change does: --set optim.lr=1e-3.

    ivj reference videomae-pretrain --workdir=runs/made --write=videomae-pretrain.json

makes the reference anew from several seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines import recipe_files
from data_pipelines.commands.arguments import Parser
from data_pipelines.commands.ending import run_command
from data_pipelines.commands.exit_codes import ExitCode
from data_pipelines.ingest.__main__ import main as ingest
from data_pipelines.limits import suggest
from data_pipelines.records.outputs import check_file, check_folder
from data_pipelines.synthetic import write_world
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.recipes.loading import check_fields
from internvideo_jax.recipes.options import assigned
from internvideo_jax.reference.table import (
    LABEL,
    REFERENCES,
    SHARED,
    STEPS,
    TEST,
    TRAIN,
    WORLD,
    Reference,
)
from internvideo_jax.telemetry import curves
from internvideo_jax.telemetry.against import verdict
from internvideo_jax.train import train


def make_data(folder: Path) -> Path:
    """Shards of the clips that the references train on; made once.

    Raises:
      RuntimeError: the ingest failed, and has said why.
    """
    shards = folder / "shards"
    if (shards / "manifest.json").exists():
        return shards
    write_world(WORLD, folder / "videos", {"train": TRAIN, "test": TEST})
    rows = [
        json.loads(line) for line in (folder / "videos/annotations.jsonl").read_text().splitlines()
    ]
    source = folder / "videos/labelled.jsonl"
    labelled = ({**row, "label": row[LABEL]} for row in rows)
    source.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    words = ("--name=world", "--quality=95", "--workers=1", "--flip-changes-label")
    if code := ingest([f"--source={source}", f"--out={shards}", *words]):
        raise RuntimeError(f"the ingest of {source} ended with exit code {code}")
    return shards


def settings_of(reference: Reference) -> dict[str, Any]:
    """The fields of a reference that differ from its recipe, whatever the seed."""
    return {
        **SHARED,
        f"evals.{reference.evaluator}.every": STEPS // 2,
        "checkpoint.every": STEPS,
        "steps": STEPS,
        **reference.settings,
    }


def config_of(
    reference: Reference, shards: Path, seed: int, changes: Mapping[str, Any] | None = None
) -> TrainConfig:
    """The config of a reference run.

    Args:
      changes: further fields by path, such as {"optim.lr": 1e-3}.

    Raises:
      ValueError: a field that the config does not have.
    """
    plain = recipe_files.load(reference.recipe)
    plain["evals"] = {reference.evaluator: plain["evals"][reference.evaluator]}
    settings = {
        **settings_of(reference),
        "data.train": str(shards),
        "data.reader.threads": 2,
        "seed": seed,
        **(changes or {}),
    }
    check_fields(plain, list(settings))
    for path, value in settings.items():
        *above, name = path.split(".")
        here = plain
        for part in above:
            here = here[part]
        here[name] = value
    return to_typed(TrainConfig, plain)


def write(name: str, reference: Reference, folder: Path, seeds: Sequence[int], out: Path) -> int:
    """Makes a run for every seed, and the reference of them all; the exit code."""
    shards, runs = make_data(folder), []
    for seed in seeds:
        workdir = folder / f"{name}-{seed}"
        if code := train(config_of(reference, shards, seed), workdir):
            return code
        runs.append(curves.of_run(workdir))
    config = _without_places(runs[0].config)
    runs[0] = dataclasses.replace(runs[0], config=config)
    metric = f"eval/{reference.evaluator}/{reference.metric}"
    about = {
        "recipe": reference.recipe,
        "seeds": list(seeds),
        "metrics": {metric: reference.margin},
        "world": {
            **dataclasses.asdict(WORLD),
            "train": TRAIN,
            "test": TEST,
            "label": LABEL,
        },
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
    }
    out.write_text(curves.as_json(runs, name, about), encoding="utf-8")
    print(f"written to {out}")
    return ExitCode.GOOD


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the folder of the data, which is somewhere else for everybody."""
    return {**config, "data": {**config["data"], "train": ""}}


def listing() -> str:
    """The references that can be run, and whether the package has their curves."""
    there, width = curves.names(), max(map(len, REFERENCES))
    return "\n".join(
        f"{name.ljust(width)}  {each.recipe}" + ("" if name in there else " (no stored curves)")
        for name, each in REFERENCES.items()
    )


def run(options: argparse.Namespace) -> int:
    """What the command line asks for; the exit code."""
    if options.list:
        print(listing())
        return ExitCode.GOOD
    if options.name not in REFERENCES:
        raise ValueError(
            f"no reference {options.name!r}: {suggest(options.name or '', REFERENCES)}"
        )
    if options.workdir is None:
        raise ValueError("no --workdir given; expected a folder for clips and runs")
    check_folder("--workdir", options.workdir)
    use_compile_cache("")
    reference, changes = REFERENCES[options.name], assigned(options.set, "--set ")
    if options.write:
        check_file("--write", options.write)
        if changes or options.seed is not None:
            raise ValueError("--write makes the reference as it is: leave --set and --seed out")
        seeds = options.seeds or reference.seeds
        return write(options.name, reference, options.workdir, seeds, options.write)
    if options.name not in curves.names():
        raise ValueError(
            f"the package has no curves of {options.name}: make some with --write=FILE, then "
            "`ivj report RUN --against=FILE` compares with them"
        )
    seed = max(reference.seeds) + 1 if options.seed is None else options.seed
    workdir = options.workdir / f"{options.name}-{seed}"
    config = config_of(reference, make_data(options.workdir), seed, changes)
    if code := train(config, workdir):
        return code
    found = verdict(workdir, options.name)
    print("\n".join(found.lines))
    return ExitCode.BAD_DATA if found.parts else ExitCode.GOOD


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivj reference`."""
    parser = Parser(
        prog="ivj reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(REFERENCES)}")
    parser.add_argument("--list", action="store_true", help="show what there is")
    parser.add_argument("--workdir", type=Path, help="folder for clips and runs")
    parser.add_argument("--seed", type=int, help="of the run; default: one that is not stored")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="another setting"
    )
    parser.add_argument("--write", type=Path, help="make the reference anew, into this file")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="of --write (default: those that are stored)"
    )
    options = parser.parse_args(arguments)
    stopped = "stopped; the same command goes on"
    return run_command(lambda: run(options), stopped)


if __name__ == "__main__":
    sys.exit(main())
