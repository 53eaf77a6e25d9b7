"""Alignment on two meshes of eight devices against one device; test_alignment.py runs it."""

from __future__ import annotations

import jax
import numpy as np

from internvideo_jax.objectives.alignment import Alignment
from tests.internvideo_jax.objectives.aligned import CLIP, MAE, config_of, losses, run_of

both = Alignment(mask_ratio=0.75, clip_teacher=CLIP, mae_teacher=MAE)
one = losses(run_of(config_of(both)))
assert np.ptp(one[:, 0]) > 1e-2, "the comparison could not fail"
for mesh, split, accumulate in (((2, 2, 2), "all", 2), ((1, 4, 2), "fsdp", 1)):
    run = run_of(config_of(both, mesh, split=split, accumulate=accumulate), jax.devices())
    shape = run.frozen["clip_teacher"].shapes["stack"]["blocks"]["kernel"].shape
    where = run.frozen["clip_teacher"].shardings["stack"]["blocks"]["kernel"]
    pieces = int(np.prod(shape)) // int(np.prod(where.shard_shape(shape)))
    assert pieces == 8, (mesh, split, pieces, where)
    worst = np.abs(losses(run) - one).max()
    print(mesh, split, pieces, worst)
    assert worst < 1e-5, (mesh, split, worst)
