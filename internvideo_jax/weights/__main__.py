"""Weight files from the command line.

python -m internvideo_jax.weights inspect FILE
python -m internvideo_jax.weights import FILE --out ours.safetensors
python -m internvideo_jax.weights export RUN_OR_FILE --out torch.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from internvideo_jax.checkpoint.initial import checkpoint_weights
from internvideo_jax.weights import files


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m internvideo_jax.weights",
        description="Published torch weights <-> ours. Values are moved, never changed.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("inspect", help="say what a file holds")
    one.add_argument("source", type=Path)
    one = commands.add_parser("import", help="torch file -> safetensors with our names")
    one.add_argument("source", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one = commands.add_parser(
        "export", help="training run, checkpoint or our file -> safetensors with torch names"
    )
    one.add_argument("source", type=Path)
    one.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        is_run = options.source.is_dir()
        weights = checkpoint_weights(options.source) if is_run else files.load(options.source)
        print(describe(options.source, weights))
        if options.command == "import":
            files.save_ours(options.out, weights)
        elif options.command == "export":
            files.save_torch(options.out, weights)
        if options.command != "inspect":
            print(f"written to {options.out}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def describe(source: Path, weights: files.Weights) -> str:
    count = sum(value.size for value in weights.params.values())
    geometry = ", ".join(f"{name} {size}" for name, size in weights.geometry.items())
    lines = [f"{source}: {weights.kind}, {count:,} parameters, {geometry}"]
    if weights.coverage is not None:
        lines.append(weights.coverage.text())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
