"""Losses of a classifier under adapters on one device and on meshes of eight."""

import dataclasses

import jax
import numpy as np

from internvideo_jax.config import MeshConfig
from internvideo_jax.run.build import build
from internvideo_jax.run.step import state_from
from tests.internvideo_jax.run.test_lora import ADAPTED, CLASSES, MODEL, config_of, trained

MESHES = {(8, 1, 1): 1, (2, 2, 2): 1, (1, 4, 2): 2}  # to microbatches


def losses(base, mesh, accumulate, devices):
    config = dataclasses.replace(
        config_of(ADAPTED, accumulate=accumulate), mesh=MeshConfig(*mesh, shard_above=64), steps=5
    )
    run = build(config, records=100, classes=CLASSES, devices=devices)
    split = sum(not s.is_fully_replicated for s in jax.tree.leaves(run.plan.shardings.params))
    return np.array(trained(run, state_from(run, base))[1]), split


rng = np.random.default_rng(1)
base = jax.tree.map(
    lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype), MODEL.model().shapes()
)
one, _ = losses(base, (1, 1, 1), 1, jax.devices()[:1])
assert np.ptp(one) > 1e-2
for mesh, accumulate in MESHES.items():
    found, split = losses(base, mesh, accumulate, jax.devices())
    worst = np.abs(found - one).max()
    print(mesh, accumulate, split, worst)
    assert (split > 0) == (mesh[1] * mesh[2] > 1)
    assert worst <= 1e-5, (mesh, worst)
