"""The contrastive losses against the written-out formula, on one and several devices."""

from __future__ import annotations

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.ops.contrastive import contrastive_loss
from tests.conftest import ROOT, environment

# The formulas, every similarity at once.
PLAIN = """
import jax, jax.numpy as jnp, numpy as np
from internvideo_jax.config import MeshConfig
from internvideo_jax.ops.contrastive import contrastive_loss
from internvideo_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh

def plain(kind, video, text, temperature, bias, ids, valid):
    rows = np.flatnonzero(valid)
    v, t = (x[rows] / jnp.linalg.norm(x[rows], axis=-1, keepdims=True) for x in (video, text))
    same = (ids[rows][:, None] == ids[rows][None]).all(-1).astype(np.float32)
    logits = v @ t.T / temperature
    if kind == "sigmoid":
        return -jax.nn.log_sigmoid((2 * same - 1) * (logits + bias)).sum(axis=1).mean()
    target = same / same.sum(axis=1, keepdims=True)
    return -sum((target * jax.nn.log_softmax(s)).sum(axis=1).mean() for s in (logits, logits.T)) / 2

def pairs(rows, width=12):
    rng = np.random.default_rng(3)
    video = rng.standard_normal((rows, width), np.float32)
    text = video + 2 * rng.standard_normal((rows, width), np.float32)
    ids = np.stack([rng.integers(0, rows // 2, rows), rng.integers(0, 2, rows)], 1).astype(np.int32)
    return video, text, ids, rng.random(rows) < 0.8

def check(kind, form, mesh, temperature, masked, tile, rows=64):
    video, text, ids, valid = pairs(rows)
    valid = valid if masked else np.ones(rows, bool)
    numbers = jnp.float32(temperature), jnp.float32(-2.0)
    formula = jax.value_and_grad(lambda *a: plain(kind, *a, ids, valid), argnums=(0, 1, 2, 3))
    wanted = jax.jit(formula)(video, text, *numbers)
    def loss(video, text, temperature, bias):
        mean, metrics = contrastive_loss(
            video, text, temperature, ids=ids, valid=valid if masked else None, bias=bias,
            kind=kind, form=form, batch_axes=BATCH_AXES, tile=tile)
        return mean.value(), {name: mean.value() for name, mean in metrics.items()}
    with jax.set_mesh(mesh):
        v, t = jax.device_put((video, text), batch_sharding(mesh))
        (value, metrics), slopes = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(v, t, *numbers)
    found = jax.device_get((value, slopes))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5 * np.abs(b).max() + 1e-9,
                                   err_msg=f"{kind} {form} {dict(mesh.shape)} {temperature}")
    return metrics
"""


@pytest.fixture
def run(program):
    def run(code: str, devices: int) -> None:
        done = program(PLAIN + code, devices=devices, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def test_loss_and_gradients_on_eight_devices(run):
    run(
        """
mesh = make_mesh(MeshConfig(2, 2, 2))
check("softmax", "global", mesh, 0.05, masked=True, tile=64)
check("softmax", "ring", mesh, 0.05, masked=True, tile=64)
""",
        8,
    )


@pytest.mark.slow  # a loss and its formula to compile four times
@pytest.mark.parametrize("form", ["global", "ring"])
def test_loss_and_gradients_on_one_two_and_eight_devices(run, form):
    run(
        f"""
form = {form!r}
meshes = [make_mesh(MeshConfig(*sizes), jax.devices()[:count])
          for count, sizes in ((1, (1, 1, 1)), (2, (2, 1, 1)), (8, (2, 2, 2)))]
one = check("softmax", form, meshes[0], 0.05, masked=True, tile=64)
check("softmax", form, meshes[1], 0.01, masked=False, tile=1 << 20)
eight = check("softmax", form, meshes[2], 0.05, masked=True, tile=64)
check("sigmoid", form, meshes[2], 0.2, masked=True, tile=64)
for name in one:
    assert 0.1 < float(one[name]) < 0.9 and float(one[name]) == float(eight[name])
""",
        8,
    )


def test_no_device_of_the_ring_holds_the_similarities_with_a_whole_block(run):
    """The largest array in the traced program, of one device where shard_map has split it."""
    run(
        """
from internvideo_jax.parallel.mesh import replicated
B, E, N, TILE = 4096, 16, 8, 1 << 14
mesh = make_mesh(MeshConfig(), jax.devices())
def loss(v, t, temperature):
    mean, _ = contrastive_loss(v, t, temperature, form="ring", batch_axes=BATCH_AXES, tile=TILE)
    return mean.value()
with jax.set_mesh(mesh):
    array = jax.ShapeDtypeStruct((B, E), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    traced = step.trace(array, array, jnp.float32(1))
def largest(jaxpr, inside):
    found = 0
    for equation in jaxpr.eqns:
        if inside:
            found = max([found, *(v.aval.size for v in equation.outvars)])
        for value in jax.tree.leaves(list(equation.params.values()),
                                     is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found = max(found, largest(inner, inside or equation.primitive.name == "shard_map"))
    return found
found = largest(traced.jaxpr.jaxpr, False)
assert found == max(TILE, B // N * E), found
assert found < (B // N) ** 2
""",
        8,
    )


@pytest.mark.slow  # two processes that each start and compile
def test_two_processes_give_the_loss_and_gradients_of_the_formula():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = """
import sys
from internvideo_jax.parallel import multihost
multihost.initialize()
rows, width, kind = 16, 12, "softmax"
video, text, ids, valid = pairs(rows)
mesh = make_mesh(MeshConfig())
sharding = batch_sharding(mesh)
mine = slice(jax.process_index() * rows // 2, (jax.process_index() + 1) * rows // 2)
batch = multihost.to_global(
    {"v": video[mine], "t": text[mine], "ids": ids[mine], "valid": valid[mine]}, sharding)
wanted = jax.value_and_grad(lambda *a: plain(kind, *a, ids, valid), argnums=(0, 1, 2))(
    video, text, np.float32(0.05), 0.0)
for form in ("global", "ring"):
    def loss(v, t, temperature, batch):
        mean, _ = contrastive_loss(v, t, temperature, ids=batch["ids"], valid=batch["valid"],
                                   form=form, batch_axes=BATCH_AXES)
        return mean.value()
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
            batch["v"], batch["t"], np.float32(0.05), batch)
    found = jax.tree.leaves(multihost.to_host(found))
    for a, b in zip(found, jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a).reshape(np.shape(b)), b, rtol=2e-5, atol=1e-5)
print("agreed", jax.process_count(), jax.device_count())
"""
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", PLAIN + code],
            cwd=ROOT,
            env={
                **environment(2),
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(outputs)[-4000:]
    assert all("agreed 2 4" in output for output in outputs)


def value(video, text, temperature=0.1, **settings):
    """((loss, accuracies), gradients by both embeddings and the temperature)."""

    def loss(video, text, temperature):
        mean, metrics = contrastive_loss(video, text, temperature, **settings)
        return mean.value(), {name: mean.value() for name, mean in metrics.items()}

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    return step(jnp.asarray(video), jnp.asarray(text), jnp.float32(temperature))


def test_far_apart_embeddings_at_the_lowest_temperature():
    """Every similarity is -1, so exp(S - 1 / temperature) would be exp(-200) = 0 in float32."""
    video = np.tile(np.eye(1, 8, dtype=np.float32), (4, 1))
    (loss, accuracies), (dv, _, slope) = value(video, -video, 0.01)
    np.testing.assert_allclose(loss, np.log(4), atol=1e-5)  # logits of -100 in float32
    assert np.isfinite(dv).all() and np.isfinite(slope)
    # All candidates are equally near: knowing nothing is not being right.
    assert list(accuracies.values()) == [0.0, 0.0]


def test_accuracies_of_both_directions():
    text = np.eye(4, 8, dtype=np.float32)
    video = text[[0, 0, 2, 3]]  # text 0 finds two equally near clips, text 1 none
    (_, accuracies), _ = value(video, text)
    assert accuracies == {"accuracy_video_to_text": 0.75, "accuracy_text_to_video": 0.5}
    ids = jnp.asarray([0, 0, 1, 2], jnp.int32)
    (_, accuracies), _ = value(video, text, ids=ids)
    assert accuracies == {"accuracy_video_to_text": 1.0, "accuracy_text_to_video": 0.75}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_rows_of_zeros_are_harmless_and_nan_is_not_hidden(kind):
    rng = np.random.default_rng(0)
    video, text = rng.standard_normal((2, 6, 5), np.float32)
    video[2] = 0
    (loss, _), (dv, _, _) = value(video, text, kind=kind, bias=jnp.float32(-1.0))
    assert np.isfinite(loss) and np.isfinite(dv).all()
    text[4, 1] = np.nan
    (loss, _), (_, dt, slope) = value(video, text, kind=kind, bias=jnp.float32(-1.0))
    assert np.isnan(loss) and np.isnan(dt).any() and np.isnan(slope)


def test_bfloat16_products_are_near_those_of_float32():
    rng = np.random.default_rng(0)
    video, noise = rng.standard_normal((2, 32, 64), np.float32)
    (exact, _), slopes = value(video, video + noise)
    (rounded, _), near = value(video, video + noise, dtype="bfloat16")
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=2e-2)
    scale = np.abs(slopes[0]).max()
    np.testing.assert_allclose(near[0], slopes[0], atol=3e-2 * scale)


def test_a_softmax_leaves_the_bias_alone():
    rng = np.random.default_rng(0)
    video, text = rng.standard_normal((2, 8, 5), np.float32)

    def loss(bias):
        return contrastive_loss(video, text, jnp.float32(0.1), bias=bias)[0].value()

    assert float(jax.grad(loss)(jnp.float32(-10.0))) == 0.0


def test_what_does_not_fit_is_named():
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"unknown kind 'hinge'.*softmax"):
        contrastive_loss(x, x, jnp.float32(1), kind="hinge")
    with pytest.raises(ValueError, match=r"unknown form 'star'.*ring"):
        contrastive_loss(x, x, jnp.float32(1), form="star")
    with pytest.raises(ValueError, match=r"video \(4, 3\) and text \(4, 2\)"):
        contrastive_loss(x, x[:, :2], jnp.float32(1))


def test_a_batch_that_the_devices_cannot_share_is_named(run):
    run(
        """
with jax.set_mesh(make_mesh(MeshConfig())):
    try:
        jax.jit(lambda x: contrastive_loss(x, x, 1.0, batch_axes=BATCH_AXES)[0])(jnp.ones((9, 3)))
    except ValueError as error:
        assert "9 rows cannot be shared by the 2 devices" in str(error), error
    else:
        raise AssertionError("no error")
""",
        2,
    )
