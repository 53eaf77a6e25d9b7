"""How fast one train step is: clips/s, compile time, memory; optionally beside a torch peer.

    python benchmarks/train_step.py --config=configs/videomae/pretrain.py:size=small \\
        --config.data.global_batch=4 --config.steps=100 \\
        --torch_model=VideoMAE/modeling_pretrain.py

Batches are random bytes that already lie in memory, so that nothing but the step is measured. The
torch peer is the reference's own model file (pre-training only), trained as its engine does: target
built from the clip, mean squared error, backward, AdamW. Both sides take turns, one timed step
each; the ratio is the median of the ratios of neighbours.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from absl import flags

from internvideo_jax import cli
from internvideo_jax.build import Run, build
from internvideo_jax.config import TrainConfig
from internvideo_jax.parallel.mesh import batch_sharding
from internvideo_jax.step import init_state, make_train_step
from internvideo_jax.telemetry.progress import peak_flops

TIMED = flags.DEFINE_integer("timed", 20, "Timed steps.", lower_bound=1)
CLASSES = flags.DEFINE_integer("classes", 400, "Classes, where the model asks the data for them.")
TORCH_MODEL = flags.DEFINE_string(
    "torch_model", "", "Path of the reference's modeling_pretrain.py; needs torch."
)
OUT = flags.DEFINE_string("out", "", "JSON file to write.")

RECORDS = 1_000_000  # only recipes given in epochs look at it


def random_batch(config: TrainConfig, classes: int) -> dict[str, np.ndarray]:
    batch, clip = config.data.global_batch, config.data.clip
    rng = np.random.default_rng(0)
    shape = (batch, clip.frames, clip.size, clip.size, 3)
    return {
        "video": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, max(classes, 1), batch).astype(np.int32),
        "index": np.arange(batch, dtype=np.int32),
        "position": np.arange(batch, dtype=np.uint32),
    }


def own_step(run: Run, batch: dict[str, np.ndarray]) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that runs one step and returns the loss, and what compiling it took."""
    state = init_state(run)
    placed = jax.device_put(batch, batch_sharding(run.mesh))
    started = time.perf_counter()
    lowered = make_train_step(run).lower(state, placed)
    traced = time.perf_counter()
    compiled = lowered.compile()
    facts: dict[str, Any] = {
        "trace_seconds": traced - started,
        "compile_seconds": time.perf_counter() - traced,
    }
    memory = compiled.memory_analysis()
    if memory is not None:
        facts["step_temporaries_mib"] = memory.temp_size_in_bytes / 2**20
        facts["step_arguments_mib"] = memory.argument_size_in_bytes / 2**20

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, placed)
        return float(metrics["train/loss"])

    return step, facts


def torch_step(
    path: Path, config: TrainConfig, batch: dict[str, np.ndarray]
) -> Callable[[], float]:
    """The same step with the reference's model, on its CPU or GPU.

    Raises:
      ValueError: no pre-training config, or no torch.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("--torch_model needs torch: pip install torch") from error
    model, objective = config.model, config.objective
    if not hasattr(model, "decoder") or objective.decoder_ratio:
        raise ValueError("--torch_model serves VideoMAE V1 pre-training configs only")
    _stand_in_for_timm()
    sys.path.insert(0, str(path.parent))
    reference = importlib.import_module(path.stem)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peer = reference.PretrainVisionTransformer(
        img_size=model.size,
        patch_size=model.patch,
        encoder_embed_dim=model.encoder.width,
        encoder_depth=model.encoder.depth,
        encoder_num_heads=model.encoder.heads,
        decoder_num_classes=model.token_pixels,
        decoder_embed_dim=model.decoder.width,
        decoder_depth=model.decoder.depth,
        decoder_num_heads=model.decoder.heads,
        mlp_ratio=model.encoder.hidden / model.encoder.width,
        qkv_bias=True,
        tubelet_size=model.tubelet,
    ).to(device)
    if model.frames != 16:
        raise ValueError("the reference's model file is written for 16 frames")
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    mean = torch.tensor(model.pixel_mean, device=device).view(1, 3, 1, 1, 1)
    std = torch.tensor(model.pixel_std, device=device).view(1, 3, 1, 1, 1)
    frames, rows, columns = model.grid
    hidden = int(objective.ratio * rows * columns)
    rng = np.random.default_rng(0)
    # As in the reference's engine, the clip arrives normalised and the target undoes it.
    pixels = torch.from_numpy(batch["video"]).permute(0, 4, 1, 2, 3).to(device)
    video = (pixels.float() / 255 - mean) / std
    half = model.dtype == "bfloat16"

    def step() -> float:
        masks = []
        for _ in range(len(video)):
            mask = np.zeros(rows * columns, bool)
            mask[rng.permutation(rows * columns)[:hidden]] = True
            masks.append(np.tile(mask, frames))
        mask = torch.from_numpy(np.stack(masks)).to(device)
        with torch.no_grad():
            raw = video * std + mean
            b, c, t, h, w = raw.shape
            p, q = model.tubelet, model.patch
            cubes = raw.reshape(b, c, t // p, p, h // q, q, w // q, q)
            cubes = cubes.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, -1, p * q * q, c)
            spread = cubes.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
            cubes = ((cubes - cubes.mean(dim=-2, keepdim=True)) / spread).flatten(2)
            target = cubes[mask].reshape(b, -1, cubes.shape[-1])
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            predicted = peer(video, mask)
            loss = torch.nn.functional.mse_loss(predicted.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _stand_in_for_timm() -> None:
    """Stands in for the four helpers of timm that the model file takes, where timm is missing.

    Enough for pre-training, which drops no path.
    """
    try:
        importlib.import_module("timm.models.layers")
    except ImportError:
        import torch  # pyright: ignore[reportMissingImports]

        layers: Any = types.ModuleType("timm.models.layers")
        layers.drop_path = lambda x, probability=0.0, training=False: x
        layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
        layers.trunc_normal_ = torch.nn.init.trunc_normal_
        registry: Any = types.ModuleType("timm.models.registry")
        registry.register_model = lambda function: function
        for name in ("timm", "timm.models"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules[layers.__name__] = layers
        sys.modules[registry.__name__] = registry


def measure(config: TrainConfig, timed: int) -> dict[str, Any]:
    """Times `timed` steps of `config`; see the module's text for what the numbers are."""
    run = build(config, records=RECORDS, classes=CLASSES.value)
    batch = random_batch(run.config, CLASSES.value)
    step, facts = own_step(run, batch)
    sides = {"own": step}
    if TORCH_MODEL.value:
        sides["torch"] = torch_step(Path(TORCH_MODEL.value), run.config, batch)
    for side in sides.values():
        for _ in range(2):
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(timed):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    clips = run.config.data.global_batch
    middle = median(seconds["own"])
    result = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "batch": clips,
        **facts,
        "step_seconds": middle,
        "clips_per_second": clips / middle,
        "model_gflops_per_second": clips * run.flops / middle / 1e9,
    }
    if "torch" not in sides:
        result["process_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak, stats = peak_flops(), jax.local_devices()[0].memory_stats() or {}
    if peak is not None:
        result["mfu"] = clips * run.flops / middle / peak
    if "peak_bytes_in_use" in stats:
        result["device_peak_mib"] = stats["peak_bytes_in_use"] / 2**20
    if "torch" in sides:
        result["torch_step_seconds"] = median(seconds["torch"])
        result["times_faster_than_torch"] = median(
            peer / own for own, peer in zip(seconds["own"], seconds["torch"], strict=True)
        )
    return result


def main() -> None:
    flags.adopt_module_key_flags(cli)

    def run() -> int:
        result = measure(cli.typed_config(), TIMED.value)
        for name, value in result.items():
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            print(f"{name:28}{text:>16}")
        if OUT.value:
            Path(OUT.value).write_text(json.dumps(result, indent=1) + "\n")
        return 0

    cli.run(run)


if __name__ == "__main__":
    main()
