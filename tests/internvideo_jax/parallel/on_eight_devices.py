"""What test_parallel.py runs in a process of eight virtual devices: a function for each test."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from internvideo_jax.config import MeshConfig, OptimConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.optim.factory import make_optimizer
from internvideo_jax.parallel.mesh import check_batch, constrain, make_mesh
from internvideo_jax.parallel.microbatch import value_and_gradient
from internvideo_jax.parallel.rules import bytes_per_device, param_shardings, state_shardings
from internvideo_jax.types import Mean, flatten_paths

assert jax.device_count() == 8
MODEL = PretrainConfig.of_size("tiny", decoder_depth=2, frames=4, resolution=16)
SHAPES = MODEL.model().shapes()


def mesh_shapes_and_errors() -> None:
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(MeshConfig(-1, 2, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(MeshConfig(2, -1, 1)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    shared = {"data": 1, "fsdp": 2, "sequence": 4, "tensor": 1}
    assert dict(make_mesh(MeshConfig(-1, 2, sequence=4)).shape) == shared
    assert dict(make_mesh(MeshConfig(1, 2, sequence=-1)).shape) == shared
    assert "sequence" not in make_mesh(MeshConfig(8, sequence=-1)).shape
    sliced = make_mesh(MeshConfig(-1, sequence=2, slices=2))
    assert dict(sliced.shape) == {"data": 4, "fsdp": 1, "sequence": 2, "tensor": 1}
    for bad, message in (
        (MeshConfig(3), "multiple of 3 devices, found 8"),
        (MeshConfig(4), "multiple of 4 devices, found 8"),
        (MeshConfig(-1, -1), "at most one -1"),
        (MeshConfig(-1, sequence=3), "'sequence': 3.* multiple of 3 devices, found 8"),
        (MeshConfig(0), "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            make_mesh(bad)
    mesh = make_mesh(MeshConfig(-1, 2, 2))
    check_batch(mesh, 8, "batch")  # the tensor axis does not split the batch
    with pytest.raises(ValueError, match="10 cannot be split evenly over 4 devices.* 8 and 12"):
        check_batch(mesh, 10, "batch")
    with pytest.raises(ValueError, match="2 microbatches; the nearest sizes are 8 and 16"):
        check_batch(mesh, 12, "batch", 2)


def parameters_and_moments_are_sharded_by_rule() -> None:
    mesh = make_mesh(MeshConfig(-1, 2, 2))
    specs = flatten_paths(param_shardings(SHAPES, MODEL.sharding_rules, mesh, 1000))
    assert specs["encoder/blocks/attn/qkv/kernel"].spec == P(None, None, "fsdp", "tensor")
    assert specs["encoder/blocks/mlp/fc2/kernel"].spec == P(None, "tensor", "fsdp")
    assert specs["encoder/patch_embed/kernel"].spec == P("fsdp")  # no rule: largest dimension
    assert specs["encoder/norm/scale"].spec == P()  # too small
    sharded = param_shardings(SHAPES, MODEL.sharding_rules, mesh, 1000)
    optimizer = make_optimizer(OptimConfig(freeze=("decoder/",)), SHAPES, lambda s: 0.1)
    state = jax.eval_shape(optimizer.init, SHAPES)
    moments = flatten_paths(state_shardings(state, SHAPES, sharded, mesh))
    found = {path for path in moments if path.endswith("/mu/encoder/blocks/attn/qkv/kernel")}
    assert len(found) == 1 and not [path for path in moments if "mu/decoder" in path]
    assert moments[found.pop()] == specs["encoder/blocks/attn/qkv/kernel"]
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(SHAPES))
    assert bytes_per_device(SHAPES, sharded) < 0.4 * whole
    with pytest.raises(ValueError, match="belongs to no parameter"):
        state_shardings(
            {"loose": jax.ShapeDtypeStruct((1 << 20,), np.float32)}, SHAPES, sharded, mesh
        )


def an_axis_that_does_not_divide_is_named() -> None:
    odd = dataclasses.replace(MODEL.encoder, width=90, heads=3)
    shapes = dataclasses.replace(MODEL, encoder=odd).model().shapes()
    with pytest.raises(
        ValueError, match="fsdp = 8 does not divide a dimension of 90.*1, 2, 3, 5, 6"
    ):
        param_shardings(shapes, MODEL.sharding_rules, make_mesh(MeshConfig(1, 8, 1)), 1000)
    with pytest.raises(ValueError, match="does not fit 'encoder/patch_embed/kernel'"):
        param_shardings(SHAPES, [("patch_embed/kernel", ("fsdp",))], make_mesh(MeshConfig()), 1000)


def microbatches_give_the_mean_over_the_whole_batch() -> None:
    mesh = make_mesh(MeshConfig(-1, 2, 1))
    x = jnp.arange(32.0).reshape(16, 2) / 10
    weight = (jnp.arange(16) % 3).astype(jnp.float32)  # parts have different total weights

    def loss(params, batch):
        error = jnp.square(batch["x"] @ params["w"]).sum(axis=-1)
        return Mean.of(error, batch["weight"]), {"mean_x": Mean.of(batch["x"])}

    params = {"w": jnp.array([[0.5, 1.0], [2.0, -1.0]])}
    batch = {"x": x, "weight": weight}
    plain = value_and_gradient(loss, params, batch, 1)
    with jax.set_mesh(mesh):
        for parts in (2, 4):
            split = jax.jit(functools.partial(value_and_gradient, loss, microbatches=parts))(
                params, batch
            )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, split)
    expected = (np.square(x @ params["w"]).sum(-1) * weight).sum() / weight.sum()
    np.testing.assert_allclose(plain[0], expected, rtol=1e-5)
    np.testing.assert_allclose(plain[2]["mean_x"], x.mean(), rtol=1e-5)


def constrain_is_a_no_op_without_a_mesh_and_pins_with_one() -> None:
    x = jnp.ones((8, 4))
    assert constrain(x, "batch") is x
    mesh = make_mesh(MeshConfig(-1, 2, 2))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x * 2, "batch", "tensor"))(x)
    assert y.sharding.spec == P(("data", "fsdp"), "tensor")
    with jax.set_mesh(make_mesh(MeshConfig(2, sequence=4))):
        for axis, size, held in (
            ("tokens", 12, 3),
            ("tokens", 3, 3),  # fewer than devices
            ("frames", 12, 3),
            ("frames", 10, 10),  # counted with the batch they could not be split
        ):
            y = jax.jit(lambda x, axis=axis: constrain(x * 2, "batch", axis))(jnp.ones((8, size)))
            assert y.sharding.shard_shape(y.shape) == (4, held), (axis, size, y.sharding)


def model_values_do_not_depend_on_the_mesh(mesh: tuple[int, int, int]) -> None:
    from internvideo_jax.ops import masking

    config = dataclasses.replace(
        MODEL,
        dtype="float32",
        encoder=dataclasses.replace(MODEL.encoder, heads=8),
        decoder=dataclasses.replace(MODEL.decoder, heads=8),
    )
    model = config.model()
    video = jax.random.uniform(jax.random.key(1), (8, 4, 16, 16, 3))
    visible, hidden = masking.sample(
        "tube", jax.random.split(jax.random.key(2), 8), config.grid, 0.5
    )
    params = model.init(jax.random.key(0))
    plain = jax.jit(model.apply)(params, video, visible, hidden)
    mesh = make_mesh(MeshConfig(*mesh))
    placed = jax.tree.map(
        jax.device_put, params, param_shardings(model.shapes(), config.sharding_rules, mesh, 1000)
    )
    with jax.set_mesh(mesh):
        sharded = jax.jit(model.apply)(placed, video, visible, hidden)
    np.testing.assert_allclose(plain, sharded, atol=1e-5)


def rules_that_contradict_each_other_or_match_nothing_are_named() -> None:
    from internvideo_jax.parallel.rules import idle_rules, sharding_notes

    mesh = make_mesh(MeshConfig(-1, 2, 2))
    same = [*MODEL.sharding_rules, (r"attn/proj/kernel", (None, "tensor", "fsdp"))]
    param_shardings(SHAPES, same, mesh, 1000)  # two rules may say the same
    clash = [*MODEL.sharding_rules, (r"proj/kernel", (..., "tensor"))]
    with pytest.raises(
        ValueError, match="contradict each other for '.*attn/proj/kernel'.*proj/kernel"
    ):
        param_shardings(SHAPES, clash, mesh, 1000)
    misspelt = [*MODEL.sharding_rules, ("blocks/atn/", (..., "tensor"))]
    assert idle_rules(SHAPES, MODEL.sharding_rules) == []
    assert idle_rules(SHAPES, misspelt) == ["blocks/atn/"]
    placed = param_shardings(SHAPES, misspelt, mesh, 1000)
    assert sharding_notes(SHAPES, placed, misspelt, mesh) == [
        "sharding rule 'blocks/atn/' matches no parameter of this model"
    ]


def a_large_parameter_left_whole_is_an_error_that_proposes_a_mesh() -> None:
    from internvideo_jax.parallel.rules import check_whole, ragged_shards, whole_parameters

    shapes = {
        "table": jax.ShapeDtypeStruct((1026, 1025), np.float32),
        "kernel": jax.ShapeDtypeStruct((256, 1024), np.float32),
    }
    mesh = make_mesh(MeshConfig(-1, 8, 1))
    placed = param_shardings(shapes, (), mesh, 1000)
    assert placed["kernel"].spec == P(None, "fsdp") and placed["table"].is_fully_replicated
    assert whole_parameters(shapes, placed, mesh, 1 << 20) == {"table": 1026 * 1025 * 4}
    with pytest.raises(
        ValueError, match=r"table \(1026, 1025\) 4.0 MiB; .*mesh.fsdp = 2 splits it"
    ):
        check_whole(shapes, placed, mesh, 1 << 20)
    check_whole(shapes, placed, mesh, 1 << 23)
    plain = make_mesh(MeshConfig())  # not meant to split anything
    check_whole(shapes, param_shardings(shapes, (), plain, 1000), plain, 1 << 20)
    two = make_mesh(MeshConfig(-1, 2, 1))
    check_whole(shapes, param_shardings(shapes, (), two, 1000), two, 1 << 20)  # as proposed
    assert ragged_shards(shapes, placed) == {}  # 1024 / 8 = 128
    rows = {"kernel": jax.ShapeDtypeStruct((1408, 6144), np.float32)}
    spec = [("kernel", ("fsdp", None))]
    assert ragged_shards(rows, param_shardings(rows, spec, mesh, 1000)) == {}  # 176 = 11 x 16
    odd = {"kernel": jax.ShapeDtypeStruct((1416, 6144), np.float32)}
    assert ragged_shards(odd, param_shardings(odd, spec, mesh, 1000)) == {"kernel": (177, 6144)}


def slices_are_joined_along_data() -> None:
    import types

    from internvideo_jax.parallel.mesh import join_slices, slices_of

    fake = [
        types.SimpleNamespace(id=i, slice_index=i % 2, device_kind="fake", platform="fake")
        for i in range(8)
    ]
    parts = slices_of(fake, 0)
    assert [[d.id for d in part] for part in parts] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    grid = np.vectorize(lambda d: d.slice_index)(join_slices(parts, 4, 2, 1))
    assert grid.tolist() == [[[0], [0]], [[0], [0]], [[1], [1]], [[1], [1]]]
    with pytest.raises(
        ValueError, match="data = 1 must be a multiple of the 2 slices.*do: .2, 4, 8"
    ):
        join_slices(parts, 1, 4, 2)
    with pytest.raises(ValueError, match="slices = 3, the devices are of 2 slices"):
        slices_of(fake, 3)
    with pytest.raises(ValueError, match=r"the slices have \[4, 3\] devices"):
        slices_of(fake[:-1], 0)
    with pytest.raises(ValueError, match="slices = 3 cannot be made of 8 devices"):
        slices_of(jax.devices(), 3)
    mesh = make_mesh(MeshConfig(-1, 2, 1, slices=2))  # a rehearsal: CPUs know no slices
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    x = jax.device_put(jnp.arange(8.0), jax.NamedSharding(mesh, P(("data", "fsdp"))))
    assert jax.jit(jnp.sum)(x) == 28


def two_described_slices_make_one_mesh() -> None:
    import os

    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    from jax.experimental import topologies

    pair = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:4x4", num_slices=2
    ).devices
    mesh = make_mesh(MeshConfig(-1, 4, 2), pair)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 4, "tensor": 2}
    slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
    assert (slices[:2] == 0).all() and (slices[2:] == 1).all()
    with pytest.raises(ValueError, match="data = 1 must be a multiple of the 2 slices"):
        make_mesh(MeshConfig(1, 16, 2), pair)
    w = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=jax.NamedSharding(mesh, P("fsdp")))
    x = jax.ShapeDtypeStruct(
        (256, 512), jnp.float32, sharding=jax.NamedSharding(mesh, P(("data", "fsdp")))
    )
    gradient = jax.jit(jax.grad(lambda w, x: jnp.square(x @ w).sum()), out_shardings=w.sharding)
    assert gradient.lower(w, x).compile().as_text()
