"""A student of two devices against one of one; arguments: the mesh."""

from __future__ import annotations

import sys

import jax
import numpy as np

from internvideo_jax.config import MeshConfig
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.parallel.rules import param_shardings
from tests.internvideo_jax.families.test_internvideo2 import STUDENT, VIDEO, VISIBLE, weights

params, model = weights(STUDENT), STUDENT.model()
plain = jax.jit(model.apply)(params, VIDEO, VISIBLE)
mesh = make_mesh(MeshConfig(*map(int, sys.argv[1:])))
placed = jax.tree.map(
    jax.device_put, params, param_shardings(model.shapes(), STUDENT.sharding_rules, mesh, 100)
)
with jax.set_mesh(mesh):
    sharded = jax.jit(model.apply)(placed, VIDEO, VISIBLE)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, sharded)
