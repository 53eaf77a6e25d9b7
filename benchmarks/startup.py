"""From the command to the first training step, with an empty and with a filled compilation cache.

    python benchmarks/startup.py --config=configs/videomae/pretrain.py:size=base --batch=2

Every start is a training command in a process of its own, on shards of random records that are made
for it; the clock stops at the line of the first step. Cold starts have an empty cache each.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from host import Host, spread

from data_pipelines.ingest.__main__ import main as ingest
from data_pipelines.synthetic import World, write_world

ROOT = Path(__file__).resolve().parents[1]
TARGET = 20.0  # seconds of a warm start
LIMIT = 900  # seconds of one start


def make_shards(folder: Path, size: int, clips: int) -> Path:
    """A few clips of the built-in world, large enough for the recipe."""
    write_world(World(size=size, frames=64), folder / "videos", {"train": clips, "test": 2})
    with contextlib.redirect_stdout(io.StringIO()):
        code = ingest(
            [
                f"--source={folder}/videos/annotations.jsonl",
                f"--out={folder}/shards",
                "--name=world",
                "--workers=1",
                "--flip-changes-label",
            ]
        )
    if code:
        raise RuntimeError(f"the ingest of the test clips ended with {code}")
    return folder / "shards"


def start(command: list[str], environment: dict[str, str]) -> float:
    """Seconds until the line of step 1. RuntimeError when it does not come."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    assert process.stdout is not None  # noqa: S101 - for the type checker
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("step 1/"):
                return time.perf_counter() - began
            if time.perf_counter() - began > LIMIT:
                break
    finally:
        process.kill()
        process.wait()
    raise RuntimeError("no first step; the command said:\n" + "".join(said[-15:]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/videomae/pretrain.py:size=base")
    parser.add_argument("--batch", type=int, default=2, help="clips per step")
    parser.add_argument("--cold", type=int, default=1, help="starts without a cache")
    parser.add_argument("--warm", type=int, default=3, help="starts with one")
    parser.add_argument("--anyway", action="store_true", help="conclude on a busy host too")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("override", nargs="*", help="further flags of the command, after --")
    options = parser.parse_args()
    host = Host()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards = make_shards(folder, 256, max(4, options.batch))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)

        def once(number: int, cache: Path) -> float:
            command = [
                sys.executable,
                "-m",
                "internvideo_jax.train",
                f"--config={options.config}",
                f"--workdir={folder}/run{number}",
                f"--compile_cache={cache}",
                f"--config.data.train={shards}",
                f"--config.data.global_batch={options.batch}",
                "--config.epochs=0.0",
                "--config.steps=100000",
                "--config.log.every=1",
                *options.override,
            ]
            return start(command, environment)

        try:
            cold = [once(i, folder / f"cache{i}") for i in range(options.cold)]
            filled = folder / "cache0" if options.cold else folder / "filled"
            if not options.cold:
                once(-1, filled)
            warm = [once(1000 + i, filled) for i in range(options.warm)]
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        size = sum(file.stat().st_size for file in filled.rglob("*") if file.is_file())
    rows = {"cold": cold, "warm": warm}
    for name, seconds in rows.items():
        if seconds:
            print(f"{name} start to the first step: {spread(seconds).text()}")
    print(f"cache: {size / 2**20:.1f} MiB")
    if options.out:
        found = {name: dataclasses.asdict(spread(s)) for name, s in rows.items() if s}
        options.out.write_text(json.dumps({**found, "host": host.facts()}, indent=1) + "\n")
    middle = spread(warm).median if warm else 0.0
    missed = [f"warm start: {middle:.1f} s, target < {TARGET:g} s"] if middle >= TARGET else []
    return host.verdict(missed, targets=1 if warm else 0, anyway=options.anyway)


if __name__ == "__main__":
    sys.exit(main())
