"""How fast evaluation computes views: our evaluator's forward pass beside the reference's in torch.

    python benchmarks/evaluation.py --config=configs/videomae/finetune.py:size=base --batch=2 \\
        --config.model.dtype=float32 --torch_model=VideoMAE/modeling_finetune.py

A step is what the `classification` evaluator compiles, from uint8 clips to logits on the host. Both
sides have the same weights, ours through the exporter, and their logits must agree first. The torch
peers (`eager` as published, `sdpa` with torch's fused attention) get clips that are normalised
already, ours normalises. Batches lie in memory. Every side is a process of its own and they take
turns of two steps, of which the second is timed; a ratio is the median of the ratios of neighbours.
Ours has large memory pages, as our commands do (docs/training.md), torch as it is.
Exit codes: 0, 1 a target was missed, 2 an error, 3 the host was busy (--anyway concludes).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import turns
from absl import flags
from host import Host, ratio, spread

from internvideo_jax import cli
from internvideo_jax.config import TrainConfig
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.classification import forward
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.parallel.mesh import batch_sharding, make_mesh
from internvideo_jax.parallel.multihost import to_host
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights.files import Weights, save_torch

TIMED = flags.DEFINE_integer("timed", 10, "Timed steps.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 2, "Views per step.", lower_bound=1)
CLASSES = flags.DEFINE_integer("classes", 400, "Classes of the head.", lower_bound=1)
TORCH_MODEL = flags.DEFINE_string(
    "torch_model", "", "Path of the reference's modeling_finetune.py; needs torch."
)
PEERS = flags.DEFINE_list("peers", ["eager", "sdpa"], "Of eager, sdpa.")
ANYWAY = flags.DEFINE_bool("anyway", False, "Conclude on a busy host too.")
OUT = flags.DEFINE_string("out", "", "JSON file to write.")
SIDE = flags.DEFINE_string("side", "", "Internal: the folder of the comparison this is a side of.")

TOLERANCE = 1e-4  # of the largest logit, between two sides in float32
FASTER = {"eager": 1.0, "sdpa": 1.0}  # times faster than each peer, at least


def own_step(config: TrainConfig, folder: Path) -> tuple[Callable[[], float], dict[str, Any]]:
    """A step of the evaluator's forward pass, returning the sum of its logits.

    Leaves weights in torch names, the batch and `logits-own.npy` in `folder`.
    """
    # The published head starts a thousand times smaller, and logits of nothing always agree.
    settings = dataclasses.replace(
        cast(VideoMAEClassifierConfig, config.model), classes=CLASSES.value, head_scale=1.0
    )
    model, mesh = settings.model(), make_mesh(config.mesh)
    params = jax.jit(model.init)(jax.random.key(0))
    flat = {path: np.asarray(value) for path, value in flatten_paths(params).items()}
    geometry = {"patch": settings.patch, "tubelet": settings.tubelet}
    save_torch(folder / "weights.safetensors", Weights(settings.name, flat, geometry))
    shape = (BATCH.value, settings.frames, settings.resolution, settings.resolution, 3)
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, shape, np.uint8)
    label = np.zeros(BATCH.value, np.int64)
    np.savez(folder / "batch.npz", video=video, label=label)
    context = EvalContext(model, mesh, config.data, params=params)
    function = context.compiled("logits", lambda: forward(model.apply))
    placed = {"video": jax.device_put(video, batch_sharding(mesh))}

    def logits() -> np.ndarray:
        with jax.set_mesh(mesh):
            return to_host(function(params, placed))

    started = time.perf_counter()
    np.save(folder / "logits-own.npy", logits())
    facts = {
        "first_call_seconds": time.perf_counter() - started,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "forward_gflops": settings.forward_flops() / 1e9,
    }
    return lambda: float(logits().sum()), facts


def torch_spec(config: TrainConfig, folder: Path, variant: str) -> dict[str, Any]:
    """What `torch_peer.py` needs; ValueError where the reference has no such model."""
    model = cast(VideoMAEClassifierConfig, config.model)
    if model.name != "videomae_classifier":
        raise ValueError(f"--torch_model serves VideoMAE classifiers, not {model.name}")
    sizes = {
        "embed_dim": model.encoder.width,
        "depth": model.encoder.depth,
        "num_heads": model.encoder.heads,
        "num_classes": CLASSES.value,
        "all_frames": model.frames,
        "init_scale": 1.0,
    }
    return turns.torch_spec("views", TORCH_MODEL.value, folder, variant, model, sizes)


def compare(config: TrainConfig, folder: Path) -> dict[str, turns.Side]:
    """The sides after their turns; RuntimeError where their logits differ."""
    peers = turns.chosen(PEERS.value, FASTER) if TORCH_MODEL.value else []
    specs = {name: torch_spec(config, folder, name) for name in peers}
    return turns.compare(
        specs, folder, TIMED.value, ready=lambda name: check_logits(config, folder, name)
    )


def check_logits(config: TrainConfig, folder: Path, name: str) -> None:
    ours, theirs = (np.load(folder / f"logits-{side}.npy") for side in ("own", name))
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name:8} largest difference of a logit {difference:.2g} of the largest logit")
    dtype = cast(VideoMAEClassifierConfig, config.model).dtype
    if difference > (TOLERANCE if dtype == "float32" else 5e-2):
        raise RuntimeError(f"the logits here and in {name} differ by {difference:.2g}")


def report(sides: dict[str, turns.Side]) -> tuple[dict[str, Any], list[str]]:
    """Plain numbers of all sides, and missed targets."""
    own, missed = sides["own"], []
    result: dict[str, Any] = {"views": BATCH.value, **own.facts, "sides": {}}
    for name, side in sides.items():
        rate = spread([BATCH.value / seconds for seconds in side.seconds])
        print(f"{name:8} {rate.text('views/s')}; peak {side.memory['process_peak_mib']:.0f} MiB")
        row = {"views_per_second": dataclasses.asdict(rate), **side.memory}
        result["sides"][name] = row
        if name == "own":
            continue
        faster = ratio(side.seconds, own.seconds)
        print(f"{'':8} ours is {faster.text('times faster')}")
        row["times_slower"] = dataclasses.asdict(faster)
        if faster.median < FASTER[name]:
            missed.append(f"{faster.median:.3f} times faster than {name}, target {FASTER[name]}")
    return result, missed


def main() -> None:
    flags.adopt_module_key_flags(cli)

    def run() -> int:
        config = cli.typed_config()
        if not hasattr(config.model, "head_scale"):
            raise ValueError(f"{config.model.name} is no classifier; see configs/*/finetune.py")
        if SIDE.value:
            return turns.serve(lambda: own_step(config, Path(SIDE.value)))
        host = Host()
        with tempfile.TemporaryDirectory() as folder:
            sides = compare(config, Path(folder))
        result, missed = report(sides)
        if OUT.value:
            text = json.dumps({**result, "missed": missed, "host": host.facts()}, indent=1)
            Path(OUT.value).write_text(text + "\n")
        return host.verdict(missed, targets=len(sides) - 1, anyway=ANYWAY.value)

    cli.run(run)


if __name__ == "__main__":
    main()
