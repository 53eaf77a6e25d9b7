"""Does pre-training help, beyond chance and beyond luck? The demo, over several seeds.

    python benchmarks/learning.py --out learning_out --seeds 0 1 2

Every seed has its own world, initial weights, masks and order. Both fine-tunings of a seed see the
same labelled clips for the same number of steps; the only difference is where they start. Ends with
an error unless the mean margin exceeds the larger standard deviation over seeds and every
pre-trained start beats every random one. About twelve minutes per seed on two cores; starting again
continues. Other options go to `scripts/demo.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]
STARTS = ("from_pretrained", "from_random")


def accuracy(folder: Path) -> dict[str, float]:
    """Top-1 of both fine-tunings of one seed, and chance."""
    metrics = {
        start: json.loads((folder / f"{start}.json").read_text())["results"]["test"]["metrics"]
        for start in STARTS
    }
    return {
        **{start: metrics[start]["top1"] for start in STARTS},
        "chance": metrics[STARTS[0]]["chance"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare pre-trained and random starts.")
    parser.add_argument("--out", type=Path, default=Path("learning_out"), help="directory to fill")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, demo = parser.parse_known_args()
    rows = {}
    for seed in options.seeds:
        folder = options.out / f"seed{seed}"
        done = folder / "done"
        if not done.exists():
            command = [sys.executable, ROOT / "scripts/demo.py", "--out", folder, "--seed", seed]
            code = subprocess.run([*map(str, command), *demo], check=False).returncode
            if code:
                sys.exit(f"seed {seed}: the demo ended with exit code {code}")
            done.touch()
        rows[seed] = accuracy(folder)

    margins = [row["from_pretrained"] - row["from_random"] for row in rows.values()]
    print(f"\n{'seed':<8}{'pretrained':>12}{'random':>10}{'margin':>10}{'chance':>10}")
    for (seed, row), margin in zip(rows.items(), margins, strict=True):
        print(
            f"{seed:<8}{row['from_pretrained']:>12.3f}{row['from_random']:>10.3f}{margin:>10.3f}"
            f"{row['chance']:>10.3f}"
        )
    columns = {start: [row[start] for row in rows.values()] for start in STARTS}
    # Where every seed gains, and the gain is larger than what another seed would change.
    overlap = min(columns["from_pretrained"]) <= max(columns["from_random"])
    spread = {start: stdev(column) for start, column in columns.items() if len(column) > 1}
    clear = not overlap and mean(margins) > max([0.0, *spread.values()])
    print(
        f"{'mean':<8}{mean(columns['from_pretrained']):>12.3f}"
        f"{mean(columns['from_random']):>10.3f}{mean(margins):>10.3f}"
    )
    if spread:
        print(f"{'stdev':<8}{spread['from_pretrained']:>12.3f}{spread['from_random']:>10.3f}")
    summary = {"seeds": rows, "mean_margin": mean(margins), "stdev": spread, "clear": clear}
    (options.out / "learning.json").write_text(json.dumps(summary, indent=1) + "\n")
    if not clear:
        sys.exit("the margin does not exceed the spread, or the ranges overlap")
    print("the mean margin exceeds the spread, and the ranges do not overlap")


if __name__ == "__main__":
    main()
