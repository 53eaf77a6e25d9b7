"""A grid of probe heads on one device and on meshes of eight; test_probe.py runs it."""

from __future__ import annotations

import jax
import numpy as np

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.config import MeshConfig, OptimConfig, TrainConfig
from internvideo_jax.families.probe.model import ProbeConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.probe import Probe
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step

TOWER = tower(32, 1, 4)
BACKBONE = PretrainConfig(
    encoder=TOWER, decoder=TOWER, frames=4, resolution=16, patch=8, dtype="float32"
)
MESHES = {(8, 1, 1): 1, (2, 2, 2): 1, (1, 8, 1): 2}  # to microbatches


def trained(head, mesh, accumulate, devices):
    config = TrainConfig(
        model=ProbeConfig(
            backbone=BACKBONE,
            head=head,
            learning_rates=(1e-2, 1e-3),
            hold_out=5,
            weight_decays=(0.0, 0.1),
            per_frame=True,
        ),
        objective=Probe(),
        data=DataConfig(global_batch=16, clip=ClipConfig(frames=4, stride=1, resolution=16)),
        optim=OptimConfig(
            lr=1.0, lr_batch=0, min_lr=0.0, weight_decay=0.0, clip_norm=1.0, accumulate=accumulate
        ),
        mesh=MeshConfig(*mesh, shard_above=64),
        steps=5,
    )
    run = build(config, records=16, classes=4, devices=devices)
    state, step, losses = init_state(run), make_train_step(run), []
    rng = np.random.default_rng(0)
    for number in range(5):
        state, metrics = step(
            state,
            {
                "video": rng.integers(0, 256, (16, 4, 16, 16, 3), dtype=np.uint8),
                "label": rng.integers(0, 4, 16).astype(np.int32),
                "index": np.arange(number * 16, number * 16 + 16, dtype=np.int32),
                "position": np.arange(number * 16, number * 16 + 16, dtype=np.uint32),
            },
        )
        losses.append(float(metrics["train/loss"]))
    split = sum(not s.is_fully_replicated for s in jax.tree.leaves(run.plan.shardings.params))
    return np.array(losses), jax.device_get(state.params["heads"]["head"]["kernel"]), split


for head in ("concat", "attentive"):
    one = trained(head, (1, 1, 1), 1, jax.devices()[:1])
    assert np.ptp(one[0]) > 1e-2 and np.abs(one[1]).max() > 1e-3
    for mesh, accumulate in MESHES.items():
        found = trained(head, mesh, accumulate, jax.devices())
        worst = np.abs(found[0] - one[0]).max(), np.abs(found[1] - one[1]).max()
        print(head, mesh, accumulate, found[2], worst)
        assert (found[2] > 0) == (mesh[1] * mesh[2] > 1)
        assert worst[0] <= 5e-5 and worst[1] <= 5e-5, (head, mesh, worst)
