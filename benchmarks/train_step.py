"""How fast one train step is: clips/s, compile time, memory; optionally beside torch.

    python benchmarks/train_step.py --config=configs/videomae/pretrain.py:size=small --batch=2 \\
        --config.model.dtype=float32 --config.model.remat=none \\
        --torch_model=VideoMAE/modeling_pretrain.py --peers=eager,sdpa

Batches are random bytes that already lie in memory, so that nothing but the step is measured. The
torch peers are the reference's own model file (pre-training only), trained as its engine does, with
our initial weights and masks: their first loss must be ours. Every side is a process of its own and
they take turns of two steps, of which the second is timed; a ratio is the median of the ratios of
neighbours. Ours has large memory pages, as our commands do (docs/training.md), torch as it is.
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
import jax.numpy as jnp
import numpy as np
import turns
from absl import flags
from host import Host, ratio, spread

from internvideo_jax import cli
from internvideo_jax.config import TrainConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.ops import masking
from internvideo_jax.parallel.mesh import batch_sharding
from internvideo_jax.run.build import Run, build
from internvideo_jax.run.step import init_state, make_train_step
from internvideo_jax.telemetry.progress import peak_flops
from internvideo_jax.types import TrainState, flatten_paths
from internvideo_jax.weights.files import Weights, save_torch

TIMED = flags.DEFINE_integer("timed", 20, "Timed steps.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 0, "Clips per step; 0 = the recipe's.")
CLASSES = flags.DEFINE_integer("classes", 400, "Classes, where the model asks the data for them.")
TORCH_MODEL = flags.DEFINE_string(
    "torch_model", "", "Path of the reference's modeling_pretrain.py; needs torch."
)
PEERS = flags.DEFINE_list("peers", ["eager", "sdpa"], "Of eager, sdpa, compile (sdpa under it).")
ANYWAY = flags.DEFINE_bool("anyway", False, "Conclude on a busy host too.")
OUT = flags.DEFINE_string("out", "", "JSON file to write.")
SIDE = flags.DEFINE_string("side", "", "Internal: the folder of the comparison this is a side of.")

RECORDS = 1_000_000  # only recipes given in epochs look at it
LOSS_TOLERANCE = 1e-4  # relative, of the first losses of two sides (float32)
# Of float32 pre-training steps on CPUs: times faster than each peer, memory over that of eager.
FASTER = {"eager": 1.35, "sdpa": 1.15, "compile": 1.15}
MEMORY = 1.3


def measured_config() -> TrainConfig:
    """The config of the command line with the batch and a length."""
    config = cli.typed_config()
    if BATCH.value:
        data = dataclasses.replace(config.data, global_batch=BATCH.value)
        config = dataclasses.replace(config, data=data)
    optim = dataclasses.replace(config.optim, warmup_epochs=0.0, warmup_steps=0)
    return dataclasses.replace(config, optim=optim, steps=100_000, epochs=0.0)


def random_batch(config: TrainConfig, classes: int) -> dict[str, np.ndarray]:
    batch, clip = config.data.global_batch, config.data.clip
    rng = np.random.default_rng(0)
    shape = (batch, clip.frames, clip.resolution, clip.resolution, 3)
    return {
        "video": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, max(classes, 1), batch).astype(np.int32),
        "index": np.arange(batch, dtype=np.int32),
        "position": np.arange(batch, dtype=np.uint32),
    }


def own_step(
    run: Run, folder: Path | None, classes: int
) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that runs one step and returns the loss, and what compiling it took.

    Args:
      folder: where to leave weights and masks for a peer.
    """
    batch = random_batch(run.config, classes)
    state = init_state(run)
    if folder is not None:
        leave_start(run, state.params, batch, folder)
    return compiled_step(run, state, batch)


def compiled_step(
    run: Run, state: TrainState, batch: dict[str, np.ndarray]
) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that trains on one batch again and again, and what compiling it took."""
    if run.frozen:
        raise ValueError(
            "teachers in the step are not measured here; take targets=cached, see student_step.py"
        )
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
    clips = run.config.data.global_batch
    facts |= {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "step_flops": clips * run.flops,
        "peak_flops": peak_flops(),
    }

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, placed, {})  # no frozen networks
        return float(metrics["train/loss"])

    return step, facts


def leave_start(run: Run, params: Any, batch: dict[str, np.ndarray], folder: Path) -> None:
    """The reference's names of our initial weights, our masks of the first step, and the batch."""
    model = cast(PretrainConfig, run.config.model)
    flat = {path: np.asarray(value) for path, value in flatten_paths(params).items()}
    geometry = {"patch": model.patch, "tubelet": model.tubelet}
    save_torch(folder / "weights.safetensors", Weights(model.name, flat, geometry))
    np.savez(folder / "batch.npz", video=batch["video"], label=batch["label"])
    if not hasattr(model, "decoder"):
        return
    key = jax.random.fold_in(jax.random.key(run.config.seed), 1)  # as in the train step
    keys = masking.example_keys(key, jnp.asarray(batch["position"]))
    _, decoded = cast(MaskedPixels, run.objective).draw(model, keys)
    hidden = np.zeros((len(decoded), model.tokens), bool)
    np.put_along_axis(hidden, np.asarray(decoded), True, axis=1)
    np.save(folder / "hidden.npy", hidden)


def torch_spec(config: TrainConfig, folder: Path, variant: str) -> dict[str, Any]:
    """What `torch_peer.py` needs; ValueError where the reference has no such model."""
    model, objective = cast(PretrainConfig, config.model), cast(MaskedPixels, config.objective)
    if not hasattr(model, "decoder") or objective.decoder_ratio:
        raise ValueError("--torch_model serves VideoMAE V1 pre-training configs only")
    if model.frames != 16:
        raise ValueError("the reference's model file is written for 16 frames")
    sizes = {
        "encoder_embed_dim": model.encoder.width,
        "encoder_depth": model.encoder.depth,
        "encoder_num_heads": model.encoder.heads,
        "encoder_num_classes": 0,
        "decoder_num_classes": model.token_pixels,
        "decoder_embed_dim": model.decoder.width,
        "decoder_depth": model.decoder.depth,
        "decoder_num_heads": model.decoder.heads,
    }
    return turns.torch_spec("pretrain", TORCH_MODEL.value, folder, variant, model, sizes)


def compare(config: TrainConfig, folder: Path) -> dict[str, turns.Side]:
    """The sides after their turns."""
    peers = turns.chosen(PEERS.value, FASTER) if TORCH_MODEL.value else []
    specs = {name: torch_spec(config, folder, name) for name in peers}
    return turns.compare(specs, folder, TIMED.value)


def result_of(config: TrainConfig, sides: dict[str, turns.Side]) -> dict[str, Any]:
    """Plain numbers of all sides."""
    clips = config.data.global_batch
    own = sides["own"]
    facts = dict(own.facts)
    middle = spread(own.seconds).median
    flops, peak = facts.pop("step_flops"), facts.pop("peak_flops")
    result: dict[str, Any] = {"batch": clips, "clips_per_second": clips / middle, **facts}
    result["model_gflops_per_second"] = flops / middle / 1e9
    if peak:
        result["mfu"] = flops / middle / peak
    result["sides"] = {
        name: {
            "step_seconds": dataclasses.asdict(spread(side.seconds)),
            "first_loss": side.facts["first_loss"],
            **side.memory,
        }
        for name, side in sides.items()
    }
    for name, side in sides.items():
        if name != "own":
            result["sides"][name]["times_slower"] = dataclasses.asdict(
                ratio(side.seconds, own.seconds)
            )
    return result


def judge(config: TrainConfig, sides: dict[str, turns.Side]) -> tuple[list[str], int]:
    """Missed targets and the number of targets; they are those of float32 steps on CPUs.

    Raises:
      RuntimeError: the sides do not compute the same loss.
    """
    own, missed, count = sides["own"], [], 0
    dtype = cast(PretrainConfig, config.model).dtype
    plain = dtype == "float32" and "cpu" in own.facts["device"].lower()
    for name, side in sides.items():
        if name == "own":
            continue
        ours, theirs = own.facts["first_loss"], side.facts["first_loss"]
        tolerance = LOSS_TOLERANCE if dtype == "float32" else 2e-2
        if abs(ours - theirs) > tolerance * abs(theirs):
            raise RuntimeError(f"first loss {ours} here, {theirs} in {name}: not the same step")
        if not plain:
            continue
        faster, count = ratio(side.seconds, own.seconds).median, count + 1
        if faster < FASTER[name]:
            missed.append(f"{faster:.3f} times faster than {name}, target {FASTER[name]}")
        if name == "eager":
            more = own.memory["process_peak_mib"] / side.memory["process_peak_mib"]
            count += 1
            if more > MEMORY:
                missed.append(f"{more:.2f} times the memory of eager, target {MEMORY}")
    return missed, count


def table(result: dict[str, Any], sides: dict[str, turns.Side]) -> None:
    for name, value in result.items():
        if name not in ("sides", "first_loss"):
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            print(f"{name:28}{text:>16}")
    own = sides["own"]
    for name, side in sides.items():
        memory = ", ".join(f"{k.removesuffix('_mib')} {v:.0f} MiB" for k, v in side.memory.items())
        print(f"{name:8} {spread(side.seconds).text()}; {memory}; first loss", end=" ")
        print(f"{side.facts['first_loss']:.6f}")
        if name != "own":
            more = own.memory["process_peak_mib"] / side.memory["process_peak_mib"]
            speed = ratio(side.seconds, own.seconds).text("times faster")
            print(f"{'':8} ours is {speed}, with {more:.2f} times the memory")


def main() -> None:
    flags.adopt_module_key_flags(cli)

    def run() -> int:
        config = measured_config()
        if SIDE.value:
            folder = Path(SIDE.value) if TORCH_MODEL.value else None

            def make() -> tuple[Callable[[], float], dict[str, Any]]:
                run = build(config, records=RECORDS, classes=CLASSES.value)
                return own_step(run, folder, CLASSES.value)

            return turns.serve(make)
        host = Host()
        with tempfile.TemporaryDirectory() as folder:
            sides = compare(config, Path(folder))
        result = result_of(config, sides)
        table(result, sides)
        missed, targets = judge(config, sides)
        if OUT.value:
            text = json.dumps({**result, "missed": missed, "host": host.facts()}, indent=1)
            Path(OUT.value).write_text(text + "\n")
        return host.verdict(missed, targets=targets, anyway=ANYWAY.value)

    cli.run(run)


if __name__ == "__main__":
    main()
