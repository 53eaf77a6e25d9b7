"""Kernels of eight bits on one device and on meshes of eight: outputs, and losses in training."""

import dataclasses

import jax
import numpy as np

from internvideo_jax.config import EIGHT_BITS, LoraConfig, MeshConfig, QuantizationConfig
from internvideo_jax.inference.weights import on_devices
from internvideo_jax.ops.quantized import Stored, is_kernel
from internvideo_jax.run.build import build
from internvideo_jax.run.step import state_from
from internvideo_jax.types import flatten_paths
from tests.internvideo_jax.run.test_lora import CLASSES, MODEL, batch, config_of, trained

MESHES = (2, 2, 2), (1, 4, 2)  # data, fsdp, tensor
ONE = (1, 1, 1)
STEPS = 3


def run_of(mode, mesh):
    config = dataclasses.replace(
        config_of(LoraConfig()),
        mesh=MeshConfig(*mesh, shard_above=64),
        quantization=QuantizationConfig(mode, backward="rounded"),
        steps=STEPS,
    )
    return build(config, records=100, classes=CLASSES, devices=jax.devices()[: int(np.prod(mesh))])


def stored(mode, mesh):
    """Logits with kernels rounded once, these kernels on the host, and how many are split."""
    run = run_of(mode, mesh)
    params = on_devices(run.config, run.model, base, run.mesh)
    kernels = {
        path: kernel
        for path, kernel in flatten_paths(params, is_kernel).items()
        if isinstance(kernel, Stored)
    }
    split = sum(not kernel.values.sharding.is_fully_replicated for kernel in kernels.values())
    logits = jax.jit(run.model.apply)(params, batch()["video"])
    return np.asarray(logits), jax.device_get(kernels), split


def losses(mode, mesh):
    run = run_of(mode, mesh)
    return np.array(trained(run, state_from(run, base))[1])


rng = np.random.default_rng(1)
base = jax.tree.map(
    lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype), MODEL.model().shapes()
)
for mode in EIGHT_BITS:
    logits, kernels, _ = stored(mode, ONE)
    assert np.ptp(logits) > 1e-2 and len(kernels) == 4
    for mesh in MESHES:
        found, here, split = stored(mode, mesh)
        print(mode, mesh, split, np.abs(found - logits).max() / np.abs(logits).max())
        assert split == len(kernels)
        for path, kernel in kernels.items():  # to the last bit
            np.testing.assert_array_equal(here[path].values, kernel.values, err_msg=path)
            np.testing.assert_array_equal(here[path].scale, kernel.scale, err_msg=path)
        # Sums in another order move an activation over the edge of a rounding now and then.
        np.testing.assert_allclose(found, logits, atol=1e-3 * np.abs(logits).max())
    one = losses(mode, ONE)
    assert np.ptp(one) > 1e-2
    found = losses(mode, MESHES[0])
    print(mode, "losses", np.abs(found - one).max(), one)
    np.testing.assert_allclose(found, one, rtol=1e-3, err_msg=mode)
