"""How fast a student of InternVideo2 trains on given targets, beside the reference in torch.

    python benchmarks/student_step.py --batch=2 --reference=InternVideo2/single_modality \\
        --config=configs/internvideo2/pretrain.py:size=base,targets=cached \\
        --config.model.dtype=float32 --config.model.remat=none

Targets are random and lie in memory, as do the clips, so that nothing but the student's step is
measured: its forward pass on visible tokens, three losses, gradients, clipping and AdamW. The peers
are the reference's own model file (models/internvideo2_pretrain.py) without its fused kernels,
which need CUDA: `eager` as published, `sdpa` with torch's fused attention. Its plain path has the
exact GELU, so ours takes that too; neither drops paths, so that both can be compared: with our
initial weights, clips, masks and targets their first loss must be ours. Sides take turns as in
train_step.py, whose exit codes these are. Without --reference the peers are reported as absent.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import train_step
import turns
from absl import flags
from host import Host, ratio

from internvideo_jax import cli
from internvideo_jax.config import TrainConfig
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights.files import Weights, save_torch

REFERENCE = flags.DEFINE_string(
    "reference", "", "Folder InternVideo2/single_modality of the reference; needs torch, einops."
)
MODEL_FILE = "models/internvideo2_pretrain.py"
FASTER = {"eager": 1.0, "sdpa": 1.0}  # times faster than each peer, at least (float32, CPU)
PREFIX = "features/"


def student_config() -> TrainConfig:
    """The config of the command line in the form that the reference's plain path has."""
    config = train_step.measured_config()
    if not hasattr(config.model, "clip_layers"):
        raise ValueError(
            f"{config.model.name} is no student; take configs/internvideo2/pretrain.py:size=base,"
            "targets=cached"
        )
    objective = cast(Alignment, config.objective)
    if objective.clip_teacher or objective.mae_teacher:
        raise ValueError("the recipe has teachers in the step; add targets=cached to its options")
    model = dataclasses.replace(config.model, activation="gelu", drop_path=0.0)
    return dataclasses.replace(config, model=model)


def random_batch(config: TrainConfig) -> dict[str, np.ndarray]:
    """A batch of random clips, masks and targets of unit length."""
    model, objective = cast(StudentConfig, config.model), cast(Alignment, config.objective)
    batch = train_step.random_batch(config, 0)
    rng, count = np.random.default_rng(1), len(batch["video"])
    for name, (shape, dtype) in objective.cached_shapes(model).items():
        if np.issubdtype(np.dtype(dtype), np.integer):
            batch[name] = random_mask(rng, count, shape[0], model.grid, objective.per_frame)
            continue
        values = rng.standard_normal((count, *shape), np.float32)
        batch[name] = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return batch


def random_mask(
    rng: np.random.Generator,
    count: int,
    visible: int,
    grid: tuple[int, int, int],
    per_frame: bool,
) -> np.ndarray:
    """(count, visible) int32 increasing patch numbers, equally many of each frame if asked."""
    groups, tokens = (grid[0], grid[1] * grid[2]) if per_frame else (1, int(np.prod(grid)))
    order = rng.permuted(np.tile(np.arange(tokens), (count, groups, 1)), axis=-1)
    picked = np.sort(order[..., : visible // groups], axis=-1)
    return (picked + tokens * np.arange(groups)[:, None]).reshape(count, -1).astype(np.int32)


def own_step(config: TrainConfig, folder: Path) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that runs one step and returns the loss; leaves in `folder` what peers start from.

    That is weights in torch names, and the batch with the student's frames.
    """
    run, batch = build(config, records=train_step.RECORDS), random_batch(config)
    state, model = init_state(run), cast(StudentConfig, config.model)
    flat = {path: np.asarray(value) for path, value in flatten_paths(state.params).items()}
    geometry = {"patch": model.patch, "tubelet": model.tubelet}
    save_torch(folder / "weights.safetensors", Weights(model.name, flat, geometry))
    parts: dict[str, Any] = {name.removeprefix(PREFIX): value for name, value in batch.items()}
    parts["video"] = batch["video"][:, :: model.stride]
    np.savez(folder / "batch.npz", **parts)
    return train_step.compiled_step(run, state, batch)


def torch_spec(config: TrainConfig, folder: Path, variant: str) -> dict[str, Any]:
    """What `torch_student.py` needs; ValueError where the reference has no such student."""
    model, reference = cast(StudentConfig, config.model), Path(REFERENCE.value).resolve()
    if not (reference / MODEL_FILE).is_file():
        raise ValueError(f"--reference={REFERENCE.value}: expected {MODEL_FILE} in it")
    if model.dtype != "float32" or model.clip_decoder != "linear" or not model.mae_layers:
        raise ValueError(
            "the reference's student of stage 1 has linear decoders and a MAE branch, and is "
            "compared in float32: take configs/internvideo2/pretrain.py with "
            "--config.model.dtype=float32"
        )
    objective = cast(Alignment, config.objective)
    return {
        "reference": str(reference),
        "variant": variant,
        "folder": str(folder),
        "pixel_mean": list(model.pixel_mean),
        "pixel_std": list(model.pixel_std),
        "weights": [objective.middle, objective.final, objective.mae],
        "optim": {
            "betas": [config.optim.b1, config.optim.b2],
            "eps": config.optim.eps,
            "weight_decay": config.optim.weight_decay,
        },
        "clip_norm": config.optim.clip_norm,
        "sizes": {
            "img_size": model.resolution,
            "patch_size": model.patch,
            "num_frames": model.frames,
            "tubelet_size": model.tubelet,
            "embed_dim": model.encoder.width,
            "depth": model.encoder.depth,
            "num_heads": model.encoder.heads,
            "mlp_ratio": model.encoder.hidden / model.encoder.width,
            "qkv_bias": model.qkv_bias,
            "qk_normalization": model.qk_norm,
            "init_values": model.layer_scale,
            "sep_pos_embed": model.pos_table == "separable",
            "attn_pool_num_heads": model.pool_heads,
            "clip_embed_dim": model.embedding,
            "clip_teacher_embed_dim": model.clip_width,
            "clip_teacher_final_dim": model.final_width,
            "clip_return_layer": len(model.clip_layers),
            "mae_teacher_embed_dim": model.mae_width,
            "mae_return_layer": len(model.mae_layers),
        },
    }


def judge(sides: dict[str, turns.Side]) -> tuple[list[str], int]:
    """Missed targets and the number of targets; RuntimeError where the losses differ."""
    own, missed = sides["own"], []
    for name in sides.keys() - {"own"}:
        ours, theirs = own.facts["first_loss"], sides[name].facts["first_loss"]
        if abs(ours - theirs) > train_step.LOSS_TOLERANCE * abs(theirs):
            raise RuntimeError(f"first loss {ours} here, {theirs} in {name}: not the same step")
        faster = ratio(sides[name].seconds, own.seconds).median
        if faster < FASTER[name]:
            missed.append(f"{faster:.3f} times faster than {name}, target {FASTER[name]}")
    return missed, len(sides) - 1


def main() -> None:
    flags.adopt_module_key_flags(cli)
    flags.adopt_module_key_flags(train_step)

    def run() -> int:
        config = student_config()
        if train_step.SIDE.value:
            return turns.serve(lambda: own_step(config, Path(train_step.SIDE.value)))
        host = Host()
        peers = turns.chosen(train_step.PEERS.value, FASTER) if REFERENCE.value else []
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            specs = {peer: torch_spec(config, folder, peer) for peer in peers}
            sides = turns.compare(specs, folder, train_step.TIMED.value, script="torch_student.py")
        result = train_step.result_of(config, sides)
        train_step.table(result, sides)
        if not REFERENCE.value:
            print("torch   absent: --reference names no folder")
        missed, targets = judge(sides)
        if train_step.OUT.value:
            text = json.dumps({**result, "missed": missed, "host": host.facts()}, indent=1)
            Path(train_step.OUT.value).write_text(text + "\n")
        return host.verdict(missed, targets=targets, anyway=train_step.ANYWAY.value)

    cli.run(run)


if __name__ == "__main__":
    main()
