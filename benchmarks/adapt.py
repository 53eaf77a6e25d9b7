"""Does it help to go on pre-training on one's own clips? Accuracy before and after, over seeds.

    python benchmarks/adapt.py --source=actions9/labels.csv --base=videos/ --out=adapt_out

Weights that were pre-trained on other videos (or, with --base=world, on the built-in world) stand
for published ones. `ivj adapt` goes on with them on the training clips of the source, without their
labels, and probes both sides. With --fine-tune, both are fine-tuned as docs/actions.md does it:
the same budget, the same test, the same seeds. The base weights come from seed 7, which is none of
those that are reported. Commands whose results are there are not run again. It then takes two hours
on two cores, most of them for the six classifiers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from learning import run, train

SIZE = (
    "--config.model.resolution=64",
    "--config.data.clip.resolution=64",
)
BASE = (*SIZE, "--config.evals.reconstruction.views.clip.resolution=64")
OTHER = ("--config.data.clip.stride=4", "--config.data.flip=auto")  # of real videos
STRIDE = ("--config.data.clip.stride=8", "--config.data.flip=auto")
VIEWS = tuple(
    f"--config.evals.test.views.{field}"
    for field in ("clip.resolution=64", "clip.stride=8", "clips=2", "crops=3")
)
TUNING = (
    "--config.data.global_batch=32",
    "--config.optim.lr=1e-3",
    "--config.optim.b2=0.999",
)
DOCUMENTED = (0.537, 0.659, 0.707)  # docs/actions.md: fine-tuned, seeds 1 to 3


def shards_of(source: str, out: Path) -> Path:
    """The real clips, as docs/actions.md ingests them."""
    if not (out / "manifest.json").exists():
        words = (f"--source={source}", f"--out={out}", "--short-side=96", "--quality=95")
        run(out, "data_pipelines.ingest", *words)
    return out


def base_of(out: Path, source: str, steps: int, seed: int) -> Path:
    """Weights that were pre-trained on other videos."""
    shards = out / "others"
    if not (shards / "manifest.json").exists():
        if source == "world":
            videos = out / "videos"
            run(out, "data_pipelines.synthetic", f"--out={videos}", f"--seed={seed}")
            words = (f"--source={videos}/annotations.jsonl", "--quality=95")
        else:
            words = (f"--source={source}", "--short-side=96", "--max-seconds=10")
        run(out, "data_pipelines.ingest", f"--out={shards}", *words)
    more = () if source == "world" else OTHER
    config = "configs/videomae/pretrain.py:size=tiny"
    train(out / "base", config, shards, seed, steps, *BASE, *more)
    return out / "base"


def adapted(
    out: Path, shards: Path, base: Path, seeds: Sequence[int], steps: int
) -> dict[str, Any]:
    """What `ivj adapt` says."""
    folder = out / "adapt"
    if not (folder / "adapt.json").exists():
        run(
            out, "internvideo_jax.adapt", str(shards), f"--weights={base}",
            f"--workdir={folder}", f"--steps={steps}", f"--seeds={len(seeds)}",
            f"--first_seed={seeds[0]}", *STRIDE,
        )  # fmt: skip
    return json.loads((folder / "adapt.json").read_text())


def tuned(out: Path, shards: Path, start: Path, seed: int, steps: int) -> float:
    """Top-1 of the classifier, fine-tuned as docs/actions.md does."""
    config = "configs/videomae/finetune.py:size=tiny"
    words = (*SIZE, "--config.data.clip.stride=8", *VIEWS, *TUNING, f"--config.init_from={start}")
    return train(out, config, shards, seed, steps, *words)["top1"]


def shown(values: Sequence[float]) -> str:
    """`mean (sd)`, and the values."""
    spread = f" ({stdev(values):.3f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread} | {', '.join(f'{value:.3f}' for value in values)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="labels.csv of the real clips")
    parser.add_argument("--out", type=Path, default=Path("adapt_out"), help="directory to fill")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="in a row")
    parser.add_argument("--base-seed", type=int, default=7, help="of the weights it starts from")
    parser.add_argument("--base", default="world", help="videos of those weights, or `world`")
    parser.add_argument("--base-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=600, help="of `ivj adapt`")
    parser.add_argument("--fine-tune", action="store_true", help="fine-tune both sides, too")
    parser.add_argument("--fine-tune-steps", type=int, default=900)
    options = parser.parse_args()
    out = options.out.absolute()
    source, other = (  # commands run elsewhere
        each if each == "world" else str(Path(each).absolute())
        for each in (options.source, options.base)
    )
    shards = shards_of(source, out / "shards")
    base = base_of(out, other, options.base_steps, options.base_seed)
    found = adapted(out, shards, base, options.seeds, options.steps)
    print("| | mean (sd) | seeds |\n|---|---|---|")
    for label, metrics in found["metrics"].items():
        if "top1" in metrics:
            for side in ("before", "after"):
                print(f"| {label} {side} | {shown(metrics['top1'][side])} |", flush=True)
    rows = {"documented": list(DOCUMENTED)}
    if options.fine_tune:
        for side in ("after", "before"):
            starts = {
                seed: Path(found["runs"][str(seed)]) if side == "after" else base
                for seed in options.seeds
            }
            rows[f"fine-tuned {side}"] = [
                tuned(out / f"tuned-{side}-{seed}", shards, start, seed, options.fine_tune_steps)
                for seed, start in starts.items()
            ]
    for name, values in rows.items():
        print(f"| {name} | {shown(values)} |")
    print(found["verdict"]["text"])
    if options.fine_tune:
        gain = fmean(rows["fine-tuned after"]) - fmean(DOCUMENTED)
        print(f"fine-tuned after against the documented path: {gain:+.3f}")
    (out / "adapt_table.json").write_text(
        json.dumps({"probes": found["metrics"], "fine_tuned": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
