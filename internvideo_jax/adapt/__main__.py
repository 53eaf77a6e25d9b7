"""Goes on pre-training on a folder of videos, and says whether it helped.

    ivj adapt videos/ --weights=runs/pretrain --workdir=runs/adapt --minutes=20 --seeds=3

A folder (class = parent folder), a list or a table is ingested first, a part of its source videos
kept from training; a directory of shards is taken as it is. The weights are probed on that part,
trained further with the objective that they were pre-trained with, and probed again in the same
way, for every seed. The answer, with its standard error and the weights to take, is printed and
written to WORKDIR/adapt.json and WORKDIR/report.html. Labels are used by the probes alone; without
them neighbours of own views are compared. Started again after any interruption, it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_pipelines.records.outputs import check_folder
from internvideo_jax import cli
from internvideo_jax.adapt.run import Asked, adapt
from internvideo_jax.parallel.compile_cache import use_compile_cache


def main() -> None:
    """The command `ivj adapt`."""
    flags.adopt_module_key_flags(cli)
    weights = flags.DEFINE_string(
        "weights",
        None,
        "Run directory, one of its steps, weight file, or the name of a published one. The recipe "
        "is its own; --config gives another.",
    )
    workdir = flags.DEFINE_string("workdir", None, "Directory for everything that this leaves.")
    steps = flags.DEFINE_integer("steps", 0, "Training steps of every seed.", lower_bound=0)
    minutes = flags.DEFINE_float(
        "minutes", 0.0, "Minutes of training of every seed, instead of --steps; 10 if neither.",
        lower_bound=0.0,
    )  # fmt: skip
    seeds = flags.DEFINE_integer("seeds", 1, "How many seeds; three show luck.", lower_bound=1)
    first = flags.DEFINE_integer("first_seed", 0, "The first of them.", lower_bound=0)
    probes = flags.DEFINE_list(
        "probes",
        [],
        "Evaluators to probe with, the one that decides first: linear_probe, attentive_probe, "
        "concat_probe, knn, collapse; default: what the labels allow.",
    )
    rate = flags.DEFINE_float("rate", 0.5, "Of the recipe's learning rate.", lower_bound=0.0)
    hold_out = flags.DEFINE_float(
        "hold_out", 0.2, "Share of the source videos to keep from training, where the source "
        "names no such split.", lower_bound=0.0, upper_bound=1.0,
    )  # fmt: skip
    flip = flags.DEFINE_bool(
        "flip_changes_label", False, "Of a folder: left and right matter to the labels."
    )

    def run(words: Sequence[str]) -> int:
        use_compile_cache(cli.COMPILE_CACHE.value)
        if len(words) != 1 or not weights.value or not workdir.value:
            raise ValueError(
                "a folder or shards, --weights and --workdir are needed: ivj adapt videos/ "
                "--weights=RUN --workdir=DIR; see --help"
            )
        if steps.value and minutes.value:
            raise ValueError("--steps and --minutes both say how long: leave one out")
        if cli.PROCESSES.value or cli.COORDINATOR.value:
            raise ValueError(
                "ivj adapt is one process, on all devices of a machine; for several take its "
                "parts: ivj evaluate, ivj train --config.init_from=..., ivj evaluate"
            )
        check_folder("--workdir", workdir.value)  # before a URL could become a path
        asked = Asked(
            words[0],
            weights.value,
            steps=steps.value,
            minutes=0.0 if steps.value else minutes.value or 10.0,
            seeds=tuple(range(first.value, first.value + seeds.value)),
            probes=tuple(probes.value),
            rate=rate.value,
            hold_out=hold_out.value,
            flip_changes_label=flip.value,
        )
        return adapt(cli.typed_config(), asked, Path(workdir.value), cli.overridden())

    cli.run(run, words=True, published=True)


if __name__ == "__main__":
    main()
