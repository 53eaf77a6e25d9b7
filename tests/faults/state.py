"""Saves a train state, or restores it, and prints a digest of every bit.

python -m tests.faults.state save|restore FOLDER DATA,FSDP,TENSOR
"""

from __future__ import annotations

import dataclasses
import sys

import jax

from internvideo_jax.checkpoint.manager import Checkpoints, as_tree
from internvideo_jax.checkpoint.metadata import params_digest
from internvideo_jax.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.parallel import multihost
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state


def main() -> None:
    what, folder, axes = sys.argv[1:]
    with multihost.joined():
        config = TrainConfig(
            model=PretrainConfig.of_size("tiny", decoder_depth=1, frames=4, resolution=16, patch=8),
            objective=MaskedPixels(mask_ratio=0.5),
            data=DataConfig(global_batch=8),
            optim=OptimConfig(ema_decay=0.9),
            mesh=MeshConfig(*map(int, axes.split(",")), shard_above=256),
            steps=10,
        )
        clip = dataclasses.replace(config.data.clip, frames=4, resolution=16)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, clip=clip))
        run = build(config, records=80)
        checkpoints = Checkpoints(folder, CheckpointConfig())
        if what == "save":
            # Moments and averages that differ from zero and from the parameters.
            state = jax.jit(
                lambda state: jax.tree.map(lambda x: x * 3 + 1, state),
                out_shardings=run.plan.shardings,
            )(init_state(run))
            checkpoints.save(1, state, {})
            checkpoints.wait()
        else:
            state = checkpoints.restore(1, run.plan.shapes, run.plan.shardings)
        split = sum(
            not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(as_tree(state))
        )
        print(f"digest {params_digest(as_tree(state))} split {split}", flush=True)
        checkpoints.close()


if __name__ == "__main__":
    main()
