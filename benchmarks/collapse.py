"""Does the alarm for collapsed features fire on runs that collapse, and on no others?

    python benchmarks/collapse.py --out collapse_out --seeds 1 2 3

Reference runs (`ivj reference --list`) without labels, with the evaluator `collapse` at its default
rules and `action=stop`: as they are, and with a fault that takes away what keeps features apart.
Every seed has its own weights and masks; the rules were chosen on seed 0. The faults:

  rate x 300    VideoMAE: a learning rate far too high
  no negatives  ViCLIP: a clip is pulled to its caption and pushed away from no other
  other clips   students of a teacher: each clip is compared with the targets of another one

Ends with an error unless every faulty run is stopped and no other is. Some ten seconds a run on a
core; starting again continues. `--rows` picks references by a part of their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from internvideo_jax.config import TrainConfig
from internvideo_jax.evaluators.collapse import Collapse
from internvideo_jax.objectives.alignment import PREFIX, VISIBLE, Alignment
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.protocols import Model
from internvideo_jax.reference.__main__ import config_of, make_data
from internvideo_jax.reference.table import REFERENCES
from internvideo_jax.telemetry.writer import METRICS, read_rows
from internvideo_jax.train import train
from internvideo_jax.types import Batch, Mean, Params

LOOKS = 24  # in a run


class NoNegatives(Contrastive):
    """A clip and its caption are pulled together, and nothing is pushed apart."""

    def compare(
        self, params: Params, embeddings: dict[str, jax.Array], batch: Batch
    ) -> tuple[Mean, dict[str, Mean]]:
        del params, batch
        video, text = (
            side / jnp.maximum(jnp.linalg.norm(side, axis=-1, keepdims=True), 1e-6)
            for side in (embeddings["video"], embeddings["text"])
        )
        return Mean.of(1.0 - (video * text).sum(axis=-1)), {}


class OtherClips(Alignment):
    """Every clip is compared with what the teacher made of another one of its batch."""

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Mean, dict[str, Mean]]:
        moved = {
            name: jnp.roll(value, 1, axis=0)
            for name, value in batch.items()
            if name.startswith(PREFIX) and name != VISIBLE
        }
        return super().loss(model, params, {**batch, **moved}, key, step)


Change = Callable[[TrainConfig], TrainConfig]


def with_objective(kind: type) -> Change:
    def change(config: TrainConfig) -> TrainConfig:
        return dataclasses.replace(config, objective=kind(**vars(config.objective)))

    return change


def faster(times: float) -> Change:
    def change(config: TrainConfig) -> TrainConfig:
        optim = dataclasses.replace(config.optim, lr=times * config.optim.lr, clip_norm=0.0)
        return dataclasses.replace(config, optim=optim)

    return change


# Reference -> its fault.
FAULTS: Mapping[str, tuple[str, Change]] = {
    "videomae-pretrain": ("rate x 300", faster(300.0)),
    "viclip-pretrain": ("no negatives", with_objective(NoNegatives)),
    "umt-pretrain": ("other clips", with_objective(OtherClips)),
    "internvideo2-distill": ("other clips", with_objective(OtherClips)),
    "internvideo2-pretrain": ("other clips", with_objective(OtherClips)),
}


def watched(config: TrainConfig) -> TrainConfig:
    """The run with the alarm in place of its own evaluator, on the same clips."""
    (own,) = config.evals.values()
    views = dataclasses.replace(own.views, clips=2, crops=1)
    return dataclasses.replace(
        config,
        evals={"collapse": Collapse(every=config.steps // LOOKS, views=views, action="stop")},
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      stopped: at which step; 0: it went on to the end.
      looks: metrics of all looks.
    """

    stopped: int
    looks: list[dict[str, float]]

    def cells(self) -> list[str]:
        """Effective rank and cosine of the worst tower, first -> last look."""
        towers = sorted({name.partition("/")[0] for name in self.looks[0] if "/" in name})
        found = []
        for tower in towers:
            first, last = self.looks[0], self.looks[-1]
            found.append(
                f"{tower}: rank {first[f'{tower}/effective_rank']:.2f} to "
                f"{last[f'{tower}/effective_rank']:.2f}, cosine "
                f"{first[f'{tower}/cosine']:.4f} to {last[f'{tower}/cosine']:.4f}"
            )
        return found


def outcome(config: TrainConfig, workdir: Path) -> Outcome:
    """Of a run, which is made if need be."""
    result = workdir / "outcome.json"
    if not result.exists():
        stopped = 0
        try:
            train(config, workdir)
        except RuntimeError as error:
            print(error)
            stopped = read_rows(workdir / METRICS)[-1]["step"]
        start = "eval/collapse/"
        looks = [
            {key.removeprefix(start): value for key, value in row.items() if key.startswith(start)}
            for row in read_rows(workdir / METRICS)
        ]
        content = {"stopped": stopped, "looks": [look for look in looks if look]}
        result.write_text(json.dumps(content) + "\n")
    return Outcome(**json.loads(result.read_text()))


def main() -> None:
    """Makes the runs, prints the table, and ends with an error where the alarm was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("collapse_out"), help="folder to fill")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", default="", help="only names that hold this text")
    options = parser.parse_args()
    use_compile_cache("")
    out, wrong = options.out.absolute(), []
    chosen = {name: fault for name, fault in FAULTS.items() if options.rows in name}
    if not chosen:
        sys.exit(f"no reference holds {options.rows!r}; there are {', '.join(FAULTS)}")
    lines, shards = [], make_data(out)
    for name, (fault, change) in chosen.items():
        reference = REFERENCES[name]
        for how in ("", fault):
            for seed in options.seeds:
                config = watched(config_of(reference, shards, seed))
                if how:
                    config = change(config)
                workdir = out / f"{name}-{how or 'none'}-{seed}".replace(" ", "_")
                found = outcome(config, workdir)
                ended = f"stopped at {found.stopped}" if found.stopped else f"{config.steps} steps"
                line = f"| {name} | {how or 'none'} | {seed} | {ended} | "
                lines.append(line + "; ".join(found.cells()) + " |")
                print(lines[-1], flush=True)
                if bool(found.stopped) != bool(how):
                    wrong.append(f"{name}, {how or 'healthy'}, seed {seed}")
    print(
        "\n| reference | fault | seed | end | features, first to last look |\n|---|---|---|---|---|"
    )
    print("\n".join(lines))
    if wrong:
        sys.exit(f"the alarm was wrong in {len(wrong)} runs: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
