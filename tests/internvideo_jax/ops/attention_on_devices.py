"""The attention kernel on the part of each of four devices; test_attention.py runs it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from internvideo_jax.config import MeshConfig
from internvideo_jax.ops.attention import attend
from internvideo_jax.parallel.mesh import BATCH_AXES, make_mesh

mesh = make_mesh(MeshConfig(data=2, tensor=2))
q, k, v = jax.random.normal(jax.random.key(0), (3, 4, 40, 2, 8))


def loss(form, q, k, v):
    out = attend(q, k, v, form=form, batch_axes=BATCH_AXES, head_axes=("tensor",))
    return (jnp.sin(out) * jnp.arange(40)[:, None, None]).sum() / 40, out


def run(form, *arrays):
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(lambda *a: loss(form, *a), (0, 1, 2), has_aux=True))
        return step(*arrays)


split = jax.device_put((q, k, v), NamedSharding(mesh, P(BATCH_AXES, None, "tensor")))
expected, whole = jax.grad(lambda *a: loss("xla", *a), (0, 1, 2), has_aux=True)(q, k, v)
for form in ("flash", "blocked"):
    gradients, out = run(form, *split)
    assert out.sharding.shard_shape(out.shape) == (2, 40, 1, 8), out.sharding
    np.testing.assert_allclose(out, whole, atol=1e-5)
    for ours, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)

# Where a surrounding shard_map has split the batch, only the heads are left to split.
inner = jax.shard_map(
    lambda *a: attend(*a, form="flash", batch_axes=BATCH_AXES, head_axes=("tensor",)),
    mesh=mesh,
    in_specs=P("data"),
    out_specs=P("data"),
    axis_names={"data"},
    check_vma=False,
)
with jax.set_mesh(mesh):
    np.testing.assert_allclose(jax.jit(inner)(*split), whole, atol=1e-5)
try:
    with jax.set_mesh(mesh):
        jax.jit(lambda *a: loss("flash", *a)[1])(q[:3], k[:3], v[:3])
except ValueError as error:
    assert "batch 3 cannot be split evenly over 2 devices" in str(error), error
else:
    raise AssertionError("a batch that does not divide was taken")


def spread(
    sizes: MeshConfig, queries: int, keys: int, forms: tuple[str, ...], masked: bool
) -> None:
    """Tokens split over devices, which need not divide them: output and gradients as on one."""
    ring, mask = make_mesh(sizes), None
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, n, 2, 8))
        for i, n in enumerate((queries, keys, keys))
    )
    if masked:  # an example without any key gets zeros
        mask = jax.random.bernoulli(jax.random.key(3), 0.7, (2, keys)).at[1].set(False)
    weight = jnp.cos(jnp.arange(2 * queries * 16).reshape(2, queries, 2, 8))

    def value(form, q, k, v):
        how = {"batch_axes": BATCH_AXES, "head_axes": ("tensor",), "token_axes": ("sequence",)}
        out = attend(q, k, v, mask, form=form, **how)
        return (jnp.sin(out) * weight).sum(), out

    def pulled(form):
        return jax.jit(jax.grad(functools.partial(value, form), (0, 1, 2), has_aux=True))(q, k, v)

    expected, whole = pulled("xla")
    for form in forms:
        with jax.set_mesh(ring):
            gradients, out = pulled(form)
        what = f"{form} {dict(ring.shape)} {queries} {keys}"
        np.testing.assert_allclose(out, whole, atol=1e-5, err_msg=what)
        for ours, other in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(ours, other, atol=1e-5, err_msg=what)


ALL = ("flash", "blocked", "xla")
spread(MeshConfig(1, sequence=4), 41, 41, ALL, masked=False)
spread(MeshConfig(2, sequence=2), 9, 37, ("blocked",), masked=True)
# One device has padding only.
spread(MeshConfig(1, sequence=4), 6, 5, ("blocked",), masked=False)
