"""The gradients of both scales of the contrastive loss on eight devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import MeshConfig
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.parallel.mesh import make_mesh

rng = np.random.default_rng(0)
embeddings = dict(zip(("video", "text"), rng.standard_normal((2, 16, 4), np.float32), strict=True))
batch = {"index": jnp.arange(16)}


def slopes(scale):
    def loss(params, embeddings):
        return Contrastive(scale=scale).compare(params, embeddings, batch)[0].value()

    with jax.set_mesh(make_mesh(MeshConfig(4, 1, 2))):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return jax.device_get(step({"temperature": jnp.float32(0.1)}, embeddings))


(value, (params, own)), (same, (whole, reference)) = slopes("true"), slopes("reference")
assert value == same and params["temperature"] == whole["temperature"] != 0
for name in own:
    np.testing.assert_allclose(4 * reference[name], own[name], rtol=1e-6)
