"""Activations against their formulas: values, derivatives, and what the backward pass keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.ops.activations import gelu, quick_gelu

PAIRS = [
    pytest.param(gelu, lambda x: jax.nn.gelu(x, approximate=False), id="gelu"),
    pytest.param(quick_gelu, lambda x: x * jax.nn.sigmoid(1.702 * x), id="quick_gelu"),
]


@pytest.mark.parametrize(("ours", "plain"), PAIRS)
def test_value_and_derivative(ours, plain):
    x = jnp.linspace(-12.0, 12.0, 4001)
    np.testing.assert_allclose(ours(x), plain(x), atol=1e-6, rtol=0)
    slopes = [jax.vmap(jax.grad(f))(x) for f in (ours, plain)]
    np.testing.assert_allclose(*slopes, atol=1e-6, rtol=0)
    half = ours(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), plain(x), atol=0.04, rtol=0)


@pytest.mark.parametrize(("ours", "plain"), PAIRS)
def test_one_array_is_kept(ours, plain):
    def kept(f) -> int:
        _, pullback = jax.vjp(f, jnp.ones((64, 64)))
        return sum(leaf.size == 64 * 64 for leaf in jax.tree.leaves(pullback))

    assert kept(ours) == 1 < kept(plain)
