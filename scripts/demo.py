"""The whole road on one machine, in minutes: render, ingest, pre-train, crash, resume, fine-tune.

    python scripts/demo.py --out demo_out

Every step is one of the documented commands, printed before it runs; run them by hand for more.
Starting again continues where the last demo stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN = "configs/videomae/pretrain.py:size=tiny"
FINETUNE = "configs/videomae/finetune.py:size=tiny"


def run(*command: str) -> None:
    """Runs one command of the house, echoed; ends the demo when it fails."""
    full = [sys.executable, "-m", *command]
    print(f"\n$ {shlex.join(['python', '-m', *command])}", flush=True)
    code = subprocess.run(full, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"the command failed with exit code {code}")


def run_and_kill(workdir: Path, after: int, *command: str) -> None:
    """Runs a training command and kills it hard once a checkpoint at or after `after` exists."""
    print(f"\n$ {shlex.join(['python', '-m', *command])}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    while process.poll() is None:
        time.sleep(0.5)
        if newest_step(workdir) >= after:
            time.sleep(2.0)  # some steps further, so that the crash loses work
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(
                f"\n*** killed the training process hard (SIGKILL) after step {after}; the same "
                "command again goes on as if nothing had happened",
                flush=True,
            )
            return
    if process.returncode:
        sys.exit(f"the command failed with exit code {process.returncode}")


def newest_step(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="The whole road on one machine, in minutes.")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="directory to fill")
    parser.add_argument("--train", type=int, default=4000, help="clips without and with labels")
    parser.add_argument("--test", type=int, default=500, help="test clips")
    parser.add_argument("--pretrain-steps", type=int, default=2000)
    parser.add_argument("--finetune-steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the training")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    started = time.monotonic()

    videos, shards = out / "videos", out / "shards"
    if not (videos / "annotations.jsonl").exists():
        run(
            "data_pipelines.synthetic",
            f"--out={videos}",
            f"--train={options.train}",
            f"--test={options.test}",
            f"--seed={options.seed}",
        )
    run(
        "data_pipelines.ingest",
        f"--source={videos}/annotations.jsonl",
        f"--out={shards}",
        "--flip-changes-label",
        "--quality=95",
        "--name=world",
    )
    seeds = (f"--config.seed={options.seed}", f"--config.data.seed={options.seed}")

    pretrain = (
        "internvideo_jax.train",
        f"--config={PRETRAIN}",
        f"--workdir={out}/pretrain",
        f"--config.data.train={shards}",
        f"--config.steps={options.pretrain_steps}",
        *seeds,
    )
    if newest_step(out / "pretrain") < 0:
        run_and_kill(out / "pretrain", options.pretrain_steps // 2, *pretrain)
    run(*pretrain)

    for name, start in (("from_pretrained", f"{out}/pretrain"), ("from_random", "")):
        run(
            "internvideo_jax.train",
            f"--config={FINETUNE}",
            f"--workdir={out}/{name}",
            f"--config.data.train={shards}",
            f"--config.steps={options.finetune_steps}",
            f"--config.init_from={start}",
            *seeds,
        )
        run(
            "internvideo_jax.evaluate",
            f"--config={FINETUNE}",
            f"--checkpoint={out}/{name}",
            f"--config.data.train={shards}",
            f"--out={out}/{name}.json",
        )
    report = out / "report.html"
    run(
        "internvideo_jax.telemetry.report",
        f"{out}/pretrain",
        f"{out}/from_pretrained",
        f"{out}/from_random",
        f"--out={report}",
        "--title=Demo: the built-in world",
    )

    print(f"\n{'initial weights':<18}{'top-1':>8}{'top-5':>8}")
    for name in ("from_pretrained", "from_random"):
        metrics = json.loads((out / f"{name}.json").read_text())["results"]["test"]["metrics"]
        print(f"{name.removeprefix('from_'):<18}{metrics['top1']:>8.3f}{metrics['top5']:>8.3f}")
    print(f"{'chance':<18}{metrics['chance']:>8.3f}")
    print(
        f"\nreport: {report}\ntotal time {(time.monotonic() - started) / 60:.1f} minutes on "
        f"{os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
