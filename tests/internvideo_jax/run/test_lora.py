"""Adapters on a small classifier: what learns, what is stored, what is exported."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.checkpoint.initial import checkpoint_weights, load_params
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.config import (
    CheckpointConfig,
    LoraConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    as_plain,
)
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.ops import lora
from internvideo_jax.optim.factory import layer_scales
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step, state_from
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files
from tests.internvideo_jax.families.test_probe import config_of as probe_config
from tests.internvideo_jax.families.test_probe import probe
from tests.internvideo_jax.families.test_uniformerv2_training import run_of as uniformer

ROWS, CLASSES = 8, 4
MODEL = VideoMAEClassifierConfig.of_size(
    "tiny", frames=4, resolution=16, patch=8, dtype="float32", classes=CLASSES, drop_path=0.0
)
ADAPTED = LoraConfig(
    rank=4, alpha=8.0, targets=("attn/.*kernel$", "mlp/.*kernel$"), train=("^head/",)
)


def config_of(adapters: LoraConfig, **optim) -> TrainConfig:
    settings = {"lr": 1e-2, "lr_batch": 0, "min_lr": 1e-2, "weight_decay": 0.0, **optim}
    return TrainConfig(
        model=MODEL,
        objective=Classification(smoothing=0.0, mixup=0.0, cutmix=0.0),
        data=DataConfig(global_batch=ROWS, clip=ClipConfig(frames=4, stride=1, resolution=16)),
        optim=OptimConfig(**settings),
        mesh=MeshConfig(1),
        lora=adapters,
        steps=40,
    )


def built(config: TrainConfig):
    return build(config, records=100, classes=CLASSES, devices=jax.devices()[:1])


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 256, (ROWS, 4, 16, 16, 3), dtype=np.uint8),
        "label": (np.arange(ROWS) % CLASSES).astype(np.int32),
        "index": np.arange(ROWS, dtype=np.int32),
        "position": np.arange(ROWS, dtype=np.uint32),
    }


def trained(run, state):
    step = make_train_step(run)
    losses = []
    for _ in range(run.config.steps):
        state, metrics = step(state, batch())
        losses.append(float(metrics["train/loss"]))
    return jax.device_get(state), losses


@pytest.fixture(scope="module")
def base():
    """Parameters of a model with every array drawn, the head too (a fresh one is zero)."""
    rng, shapes = np.random.default_rng(1), MODEL.model().shapes()
    return jax.tree.map(lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)


@pytest.fixture(scope="module")
def learned(base):
    run = built(config_of(ADAPTED, ema_decay=0.9))
    begun = state_from(run, base)
    start = jax.device_get(begun)
    return run, start, *trained(run, begun)


def test_fresh_adapters_change_nothing(learned, base):
    run, start, _, _ = learned
    found, wanted = flatten_paths(run.parametrisation.of(start)), flatten_paths(base)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    a = start.params["lora"]["encoder"]["blocks"]["attn"]["qkv"]["kernel"]["a"]
    bound = 1 / np.sqrt(a.shape[-2])
    assert 0.9 * bound < np.abs(a).max() <= bound


def test_what_learns_is_adapters_and_head_and_only_they_have_moments(learned):
    run, start, after, _ = learned
    assert set(after.params) == {"head", "lora"}
    for path, leaf in flatten_paths(start.frozen).items():
        np.testing.assert_array_equal(leaf, flatten_paths(after.frozen)[path])
    learning = sum(leaf.size for leaf in jax.tree.leaves(after.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(after.opt_state))
    whole = sum(leaf.size for leaf in jax.tree.leaves(run.plan.params))
    assert 2 * learning <= moments <= 2 * learning + 10 and 4 * learning < whole


def test_they_learn_what_a_head_alone_does_not(learned, base):
    """Labels that say nothing of the clips, fitted in as many steps at the same rate."""
    run = built(config_of(LoraConfig(), freeze=("^(?!head/)",)))
    _, head = trained(run, state_from(run, base))
    assert learned[3][-1] < 0.3 * head[-1], (learned[3][-1], head[-1])


def test_gradients_of_adapters_are_those_of_the_low_rank_product(base):
    """d loss / d a = scale * G @ b.T, d loss / d b = scale * a.T @ G, with G of the kernel."""
    model, path = MODEL.model(), ("encoder", "blocks", "attn", "proj", "kernel")
    flat = flatten_paths(base)
    name, clip = "/".join(path), batch()["video"][:2]
    rng = np.random.default_rng(2)
    depth, rows, columns = flat[name].shape
    a = rng.normal(size=(depth, rows, 3)).astype(np.float32)
    b = rng.normal(size=(depth, 3, columns)).astype(np.float32)
    factor = lora.scale(3, 1.5)

    def loss(adapters):
        merged = lora.merge({**base, "lora": adapters}, factor)
        return model.apply(merged, clip).sum()

    tree = {"encoder": {"blocks": {"attn": {"proj": {"kernel": {"a": a, "b": b}}}}}}
    found = flatten_paths(jax.jit(jax.grad(loss))(tree))
    merged = lora.merge({**base, "lora": tree}, factor)
    whole = flatten_paths(jax.jit(jax.grad(lambda p: model.apply(p, clip).sum()))(merged))[name]
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(np.abs(whole).max())}
    turned = {"a": factor * whole @ b.mT, "b": factor * a.mT @ whole}
    for part, wanted in turned.items():
        np.testing.assert_allclose(found[f"{name}/{part}"], wanted, **tolerance)


def test_a_run_goes_on_and_is_read_and_exported_merged(tmp_path, learned):
    run, _, after, _ = learned
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(asynchronous=False))
    state = jax.tree.map(jax.device_put, after, run.plan.shardings)
    checkpoints.save(40, state, {"config": as_plain(run.config)})
    size = sum(f.stat().st_size for f in (tmp_path / "checkpoints/40").rglob("*") if f.is_file())
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(run.parametrisation.of(after)))
    assert size < whole  # with two moments and an average, of adapters only
    found = checkpoints.restore(40, run.plan.shapes, run.plan.shardings)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)
    checkpoints.close()
    wanted = flatten_paths(run.parametrisation.of(after, averaged=True))
    loaded = load_params(str(tmp_path))
    assert loaded.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(loaded[path], value, rtol=1e-6, atol=1e-7, err_msg=path)
    files.save_torch(tmp_path / "merged.safetensors", checkpoint_weights(tmp_path))
    exported = load_params(str(tmp_path / "merged.safetensors"))
    for path, value in exported.items():
        np.testing.assert_array_equal(value, loaded[path], err_msg=path)


def test_other_parameters_may_learn_beside_and_frozen_kernels_be_bfloat16(base):
    run = built(config_of(dataclasses.replace(ADAPTED, dtype="bfloat16")))
    state = state_from(run, base)
    assert set(state.params) == {"head", "lora"}
    kinds = {path: leaf.dtype.name for path, leaf in flatten_paths(state.frozen).items()}
    assert {kinds[path] for path in kinds if path.endswith("kernel")} == {"bfloat16"}
    assert {kinds[path] for path in kinds if not path.endswith("kernel")} == {"float32"}
    merged = flatten_paths(run.parametrisation.of(state))
    assert merged["encoder/blocks/attn/qkv/kernel"].dtype == "float32"


def test_fresh_adapters_are_a_function_of_the_seed():
    run = built(config_of(ADAPTED))
    other = built(dataclasses.replace(config_of(ADAPTED), seed=1))
    one, same, two = (jax.device_get(init_state(each)).params for each in (run, run, other))
    flat, again, changed = (flatten_paths(tree) for tree in (one, same, two))
    for path, value in flat.items():
        np.testing.assert_array_equal(value, again[path])
        assert not path.endswith("/a") or np.abs(value - changed[path]).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("attn/kv",)}, "config.lora.targets pattern 'attn/kv' matches no parameter"),
        ({"targets": ()}, "nothing gets adapters"),
        ({"targets": ("norm/scale$",)}, "norm/scale .* gets no adapter: expected a kernel"),
        ({"train": ("attn/qkv",)}, "config.lora.targets and config.lora.train both match"),
        ({"dtype": "int4"}, "config.lora.dtype = 'int4': expected one of float32, bfloat16"),
    ],
)
def test_what_adapters_cannot_be_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        built(config_of(dataclasses.replace(ADAPTED, **changes)))


def test_statistics_that_training_moves_must_learn():
    """A frozen parameter that the objective gives new values is named with what to do."""
    adapters = LoraConfig(rank=2, targets=("^encoder/.*attn/qkv/kernel$",))
    run = build(dataclasses.replace(uniformer().config, lora=adapters), records=8, classes=3)
    state = run.plan.shapes
    with pytest.raises(ValueError, match=r"gives encoder/blocks/local1/norm/mean new values, but"):
        make_train_step(run).trace(state, {**batch(), "label": np.zeros(8, np.int32)})


def test_a_probe_takes_no_adapters():
    with pytest.raises(ValueError, match="of which backbone/ never learns; set it to 0"):
        build(dataclasses.replace(probe_config(probe()), lora=ADAPTED), records=9, classes=CLASSES)


def test_adapters_have_the_learning_rates_of_their_layers():
    run = built(config_of(ADAPTED, layer_decay=0.5))
    scales = layer_scales(run.config.optim, run.plan.shapes.params)
    found = flatten_paths(scales)["lora/encoder/blocks/attn/qkv/kernel/a"]
    depth = MODEL.encoder.depth
    np.testing.assert_allclose(found.ravel(), 0.5 ** np.arange(depth, 0, -1))
