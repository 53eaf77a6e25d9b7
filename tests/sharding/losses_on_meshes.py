"""What test_meshes.py runs in a process of eight virtual devices: a function for each model."""

from __future__ import annotations

import jax
import numpy as np

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.config import MeshConfig, OptimConfig, TrainConfig
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.layers.tower import TowerConfig, tower
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step
from tests.internvideo_jax import small

MESHES = {  # (data, fsdp, tensor), microbatches
    "data": ((8, 1, 1), 1),
    "fsdp": ((1, 8, 1), 1),
    "data tensor": ((4, 1, 2), 1),
    "fsdp tensor": ((1, 4, 2), 1),
    "all": ((2, 2, 2), 1),
    "all, microbatches": ((2, 2, 2), 2),
}
ROWS, STEPS = 16, 20


def losses(model, objective, mesh, accumulate, devices, schedule, seed=0):
    config = TrainConfig(
        model=model,
        objective=objective,
        data=DataConfig(global_batch=ROWS, clip=ClipConfig(frames=4, stride=1, resolution=16)),
        optim=OptimConfig(
            lr=1e-3,
            lr_batch=0,
            schedule=schedule,
            warmup_lr=1e-4,
            warmup_steps=4,
            accumulate=accumulate,
        ),
        mesh=MeshConfig(*mesh, shard_above=64),
        steps=STEPS,
        seed=seed,
    )
    run = build(config, records=ROWS, classes=3, devices=devices)
    state, step = init_state(run), make_train_step(run)
    rng, found = np.random.default_rng(0), []
    for number in range(STEPS):
        state, metrics = step(
            state,
            {
                "video": rng.integers(0, 256, (ROWS, 4, 16, 16, 3), dtype=np.uint8),
                "label": rng.integers(0, 3, ROWS).astype(np.int32),
                "position": np.arange(number * ROWS, (number + 1) * ROWS, dtype=np.uint32),
            },
        )
        found.append(metrics["train/loss"])
    split = sum(not s.is_fully_replicated for s in jax.tree.leaves(run.plan.shardings.params))
    return np.array(jax.device_get(found), np.float64), split


def compare(model, objective, schedule="cosine", meshes=MESHES, microbatch_reference=False):
    one = {
        n: losses(model, objective, (1, 1, 1), n, jax.devices()[:1], schedule)[0]
        for n in ((1, 2) if microbatch_reference else (1,))
    }
    assert len(one[1]) == STEPS and np.ptp(one[1]) > 1e-3
    other = losses(model, objective, (8, 1, 1), 1, jax.devices(), schedule, seed=1)[0]
    assert np.abs(other - one[1]).max() > 1e-3, "the comparison could not fail"
    for name, (mesh, accumulate) in meshes.items():
        found, split = losses(model, objective, mesh, accumulate, jax.devices(), schedule)
        worst = np.abs(found - one.get(accumulate, one[1])).max()
        print(f"{name}: {split} parameters split, largest difference {worst:.1e}")
        assert (split > 0) == (mesh[1] * mesh[2] > 1), name
        assert worst <= 1e-5, (name, worst)


def videomae() -> None:
    # Every pair of axes is in one of the two models' lists, since compiling takes minutes.
    model = PretrainConfig(
        encoder=tower(32, 2, 4),
        decoder=tower(32, 1, 2),
        **small.clip(patch=4),
    )
    meshes = {name: mesh for name, mesh in MESHES.items() if name != "fsdp tensor"}
    compare(model, MaskedPixels(mask_ratio=0.75), meshes=meshes)


def uniformerv2() -> None:
    # Batch norm sees one microbatch at a time, so microbatches have their own reference. Fewer
    # meshes: its step takes three times as long to compile.
    model = UniFormerV2Config(
        encoder=TowerConfig(32, 2, 4, 64),
        classes=3,
        local_blocks=1,
        temporal_downsample=True,
        global_layers=(0, 1),
        local_reduction=2.0,
        mlp_dropout=0.0,
        head_dropout=0.0,
        **small.clip(),
    )
    objective = Classification(smoothing=0.0, mixup=0.0, cutmix=0.0)
    meshes = {name: MESHES[name] for name in ("data", "fsdp tensor", "all, microbatches")}
    compare(model, objective, "slowfast", meshes, microbatch_reference=True)
