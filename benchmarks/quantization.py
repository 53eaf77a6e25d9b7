"""What products of eight bits change, of trained models and in training.

    python benchmarks/quantization.py --out quantization_out --seeds 0 1 2

Reference runs (`ivj reference --list`) in float, each then evaluated in every mode: its metric, the
distance of every test video's vector, of length 1, from the one in float, and the bytes of the
parameters. Then the classifier trained with rounded products, evaluated with the same ones.
Starting again continues. The models have two layers of 32 channels: what is seen is that the
numbers are right, not how much a large model loses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from internvideo_jax.api.load import load
from internvideo_jax.config import EIGHT_BITS, QuantizationConfig, TrainConfig
from internvideo_jax.evaluate import evaluate
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.reference.__main__ import config_of, make_data
from internvideo_jax.reference.table import REFERENCES
from internvideo_jax.telemetry.writer import METRICS, read_rows
from internvideo_jax.train import train

CLASSIFIER, PAIRS = "videomae-finetune", "viclip-pretrain"
TRAINED = {
    "float": QuantizationConfig(),
    "int8": QuantizationConfig("int8"),
    "int8, gradients rounded": QuantizationConfig("int8", backward="rounded"),
    "fp8": QuantizationConfig("fp8"),
}
LAST = 20  # steps that a final loss is the mean of


def trained(name: str, label: str, seed: int, folder: Path) -> tuple[TrainConfig, Path]:
    """The config and the folder of a run, trained where it is not there."""
    config = config_of(REFERENCES[name], make_data(folder), seed)
    config = dataclasses.replace(config, quantization=TRAINED[label])
    workdir = folder / f"{name}-{label.replace(', ', '-').replace(' ', '-')}-{seed}"
    if code := train(config, workdir):
        raise SystemExit(code)
    return config, workdir


def metric(name: str, config: TrainConfig, run: Path, mode: str) -> float:
    """The metric of a reference, evaluated in a mode."""
    reference, out = REFERENCES[name], run / f"{mode}.json"
    if not out.exists():
        quantization = dataclasses.replace(config.quantization, mode=mode)
        evaluate(dataclasses.replace(config, quantization=quantization), str(run), out)
    content = json.loads(out.read_text())
    return content["results"][reference.evaluator]["metrics"][reference.metric]


def vectors(run: Path, mode: str, videos: Path) -> tuple[np.ndarray, int]:
    """(N, D) of length 1, and the bytes of the parameters."""
    model = load(run, quantization=mode, progress=False)
    found = model.embed(videos).astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True), model.nbytes


def of_inference(name: str, seeds: Sequence[int], folder: Path) -> list[str]:
    """Rows of a table: one for each mode."""
    found: dict[str, list[tuple[float, float, float, int]]] = {}
    for seed in seeds:
        config, run = trained(name, "float", seed, folder)
        exact, _ = vectors(run, "none", folder / "videos/test")
        for mode in ("none", *EIGHT_BITS):
            rows, size = vectors(run, mode, folder / "videos/test")
            apart = np.linalg.norm(rows - exact, axis=1)
            found.setdefault(mode, []).append(
                (metric(name, config, run, mode), apart.mean(), apart.max(), size)
            )
    lines = []
    for mode, rows in found.items():
        values, mean, worst, size = zip(*rows, strict=True)
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(
            f"| {name} | {mode} | {each} | {np.mean(mean):.1e} | {max(worst):.1e} | "
            f"{size[0] / 1024:.1f} |"
        )
    return lines


def of_training(seeds: Sequence[int], folder: Path) -> list[str]:
    """Rows of a table: one for each way to train the classifier."""
    lines = []
    for label, quantization in TRAINED.items():
        values, losses, in_float = [], [], []
        for seed in seeds:
            config, run = trained(CLASSIFIER, label, seed, folder)
            rows = [row for row in read_rows(run / METRICS) if "train/loss" in row]
            losses.append(float(np.mean([row["train/loss"] for row in rows[-LAST:]])))
            values.append(metric(CLASSIFIER, config, run, quantization.mode))
            in_float.append(metric(CLASSIFIER, config, run, "none"))
        each = (", ".join(f"{value:.3f}" for value in row) for row in (losses, values, in_float))
        lines.append(f"| {label} | {' | '.join(each)} |")
    return lines


def main() -> None:
    """Trains what is missing and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    use_compile_cache(str(options.out / "programs"))
    lines = ["| run | mode | metric by seed | distance of vectors, mean | worst | KiB |"]
    for name in (CLASSIFIER, PAIRS):
        lines += of_inference(name, options.seeds, options.out)
    lines.append("| trained | loss by seed | top1 in the same numbers | in float |")
    lines += of_training(options.seeds, options.out)
    text = "\n".join(lines)
    (options.out / "tables.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
