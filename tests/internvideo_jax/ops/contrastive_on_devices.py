"""What test_contrastive.py runs on several devices, and the formulas with every similarity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import MeshConfig
from internvideo_jax.ops.contrastive import contrastive_loss
from internvideo_jax.parallel import multihost
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
            video,
            text,
            temperature,
            ids=ids,
            valid=valid if masked else None,
            bias=bias,
            kind=kind,
            form=form,
            batch_axes=BATCH_AXES,
            tile=tile,
        )
        return mean.value(), {name: mean.value() for name, mean in metrics.items()}

    with jax.set_mesh(mesh):
        v, t = jax.device_put((video, text), batch_sharding(mesh))
        (value, metrics), slopes = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
        )(v, t, *numbers)
    found = jax.device_get((value, slopes))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            a,
            b,
            rtol=2e-5,
            atol=1e-5 * np.abs(b).max() + 1e-9,
            err_msg=f"{kind} {form} {dict(mesh.shape)} {temperature}",
        )
    return metrics


def loss_and_gradients_on_eight_devices() -> None:
    mesh = make_mesh(MeshConfig(2, 2, 2))
    check("softmax", "global", mesh, 0.05, masked=True, tile=64)
    check("softmax", "ring", mesh, 0.05, masked=True, tile=64)


def loss_and_gradients_on_one_two_and_eight_devices(form: str) -> None:
    meshes = [
        make_mesh(MeshConfig(*sizes), jax.devices()[:count])
        for count, sizes in ((1, (1, 1, 1)), (2, (2, 1, 1)), (8, (2, 2, 2)))
    ]
    one = check("softmax", form, meshes[0], 0.05, masked=True, tile=64)
    check("softmax", form, meshes[1], 0.01, masked=False, tile=1 << 20)
    eight = check("softmax", form, meshes[2], 0.05, masked=True, tile=64)
    check("sigmoid", form, meshes[2], 0.2, masked=True, tile=64)
    for name in one:
        assert 0.1 < float(one[name]) < 0.9 and float(one[name]) == float(eight[name])


def no_device_of_the_ring_holds_the_similarities_with_a_whole_block() -> None:
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
            for value in jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    found = max(
                        found, largest(inner, inside or equation.primitive.name == "shard_map")
                    )
        return found

    found = largest(traced.jaxpr.jaxpr, False)
    assert found == max(TILE, B // N * E), found
    assert found < (B // N) ** 2


def two_processes() -> None:
    multihost.initialize()
    rows, kind = 16, "softmax"
    video, text, ids, valid = pairs(rows)
    mesh = make_mesh(MeshConfig())
    sharding = batch_sharding(mesh)
    mine = slice(jax.process_index() * rows // 2, (jax.process_index() + 1) * rows // 2)
    batch = multihost.to_global(
        {"v": video[mine], "t": text[mine], "ids": ids[mine], "valid": valid[mine]}, sharding
    )
    wanted = jax.value_and_grad(lambda *a: plain(kind, *a, ids, valid), argnums=(0, 1, 2))(
        video, text, np.float32(0.05), 0.0
    )
    for form in ("global", "ring"):

        def loss(v, t, temperature, batch, form=form):
            mean, _ = contrastive_loss(
                v,
                t,
                temperature,
                ids=batch["ids"],
                valid=batch["valid"],
                form=form,
                batch_axes=BATCH_AXES,
            )
            return mean.value()

        with jax.set_mesh(mesh):
            found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
                batch["v"], batch["t"], np.float32(0.05), batch
            )
        found = jax.tree.leaves(multihost.to_host(found))
        for a, b in zip(found, jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(np.asarray(a).reshape(np.shape(b)), b, rtol=2e-5, atol=1e-5)
    print("agreed", jax.process_count(), jax.device_count())


def a_batch_that_the_devices_cannot_share_is_named() -> None:
    with jax.set_mesh(make_mesh(MeshConfig())):
        try:
            jax.jit(lambda x: contrastive_loss(x, x, 1.0, batch_axes=BATCH_AXES)[0])(
                jnp.ones((9, 3))
            )
        except ValueError as error:
            assert "9 rows cannot be shared by the 2 devices" in str(error), error
        else:
            raise AssertionError("no error")
