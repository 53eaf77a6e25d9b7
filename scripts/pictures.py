"""The pictures of the docs, from the built-in world and models trained on it for minutes.

    python scripts/pictures.py --work /tmp/pictures --out docs/pictures

Runs the documented commands; started again it goes on where it stopped. The report is shown by
Chromium. The picture of the search page is taken by the browser test (docs/video-search.md), of
`ivj serve` with the run and the videos that this leaves in the folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COLOURS = 128  # of a palette, which keeps the files small
BROWSER = (
    "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
    "--virtual-time-budget=5000",
)  # fmt: skip


def ivj(*words: str) -> None:
    """Runs one command of the house; ends the program when it fails."""
    print("$ ivj", *words, flush=True)
    subprocess.run([sys.executable, "-m", "internvideo_jax", *words], cwd=ROOT, check=True)


def keep(
    picture: Path, out: Path, width: int, box: tuple[int, int, int, int] | None = None
) -> None:
    """Stores a picture, cut to `box` and no wider than `width`, with a palette."""
    with Image.open(picture) as image:
        shown = image.convert("RGB").crop(box) if box else image.convert("RGB")
        if shown.width > width:
            height = round(shown.height * width / shown.width)
            shown = shown.resize((width, height), Image.Resampling.LANCZOS)
        shown.quantize(COLOURS).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1024:.0f} kB", flush=True)


SMALL = ("--config.model.resolution=32", "--config.data.clip.resolution=32")
# Name of a run -> its recipe, its set, its evaluator, and settings that make it small.
RUNS = {
    "classes": ("videomae/finetune", "colours", "test", "--config.steps=40"),
    "texts": (
        "viclip/pretrain", "actions", "retrieval",
        "--config.steps=200", "--config.optim.warmup_steps=20",
        "--config.model.frames=4", "--config.data.clip.frames=4",
        "--config.evals.retrieval.views.clip.frames=4",
    ),
    "pixels": ("videomae/pretrain", "actions", "reconstruction", "--config.steps=300"),
}  # fmt: skip


def trained(work: Path) -> None:
    """The world, as a set with actions and one with colours for classes, and the runs on them."""
    world = work / "world"
    if not (world / "annotations.jsonl").exists():
        ivj("synthetic", f"--out={world}", "--train=400", "--test=60")
    source = f"--source={world}/annotations.jsonl"
    ivj("ingest", source, f"--out={work}/actions", "--flip-changes-label", "--quiet")
    ivj("ingest", source, f"--out={work}/colours", "--columns=label=colour", "--quiet")
    for name, (recipe, shards, evaluator, *settings) in RUNS.items():
        where = (f"--workdir={work / name}", f"--config.data.train={work / shards}")
        views = f"--config.evals.{evaluator}.views.clip.resolution=32"
        ivj("train", f"--config={recipe}:size=tiny", *where, *SMALL, views, *settings)


def main() -> None:
    parser = argparse.ArgumentParser(description="The pictures of the docs.")
    parser.add_argument("--work", type=Path, required=True, help="folder for world and runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    options = parser.parse_args()
    work, out = options.work.absolute(), options.out.absolute()
    work.mkdir(parents=True, exist_ok=True)
    trained(work)
    step = "--config.data.clip.resolution=64"
    frames = ("--config.data.clip.frames=8", "--config.data.clip.stride=2")
    ivj("data", "inspect", str(work / "actions"), step, *frames, "--clips=4", f"--out={work}/look")
    keep(work / "look.png", out / "inspect.png", 700)
    keep(work / "classes/pictures/test-confusion.png", out / "confusion.png", 500)
    keep(work / "texts/pictures/retrieval-queries.png", out / "queries.png", 700)
    keep(work / "pixels/pictures/reconstruction-video0.png", out / "reconstruction.png", 700)
    if shutil.which(BROWSER[0]):
        shot, report = work / "report.png", work / "pixels/report.html"
        size = "--window-size=1000,1300"
        subprocess.run([*BROWSER, size, f"--screenshot={shot}", report.as_uri()], check=True)
        keep(shot, out / "report.png", 1000)
    print(f"search page: ivj serve --checkpoint={work}/texts --videos={work}/world/test")


if __name__ == "__main__":
    main()
