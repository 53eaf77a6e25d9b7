"""Training and inference with products of eight bits: what learns, what is stored, what is said."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import internvideo_jax as ivj
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.checkpoint.metadata import params_digest
from internvideo_jax.compile_check.aot import count_flops
from internvideo_jax.config import (
    EIGHT_BITS,
    CheckpointConfig,
    LoraConfig,
    QuantizationConfig,
    as_plain,
)
from internvideo_jax.families.probe.model import ProbeConfig
from internvideo_jax.inference.quantized import (
    QuantizedModel,
    emulated,
    note,
    quantized,
    stored_bytes,
)
from internvideo_jax.inference.weights import load, on_devices
from internvideo_jax.offline.by_shard import check_same
from internvideo_jax.ops.quantized import BACKWARD, MODES
from internvideo_jax.run.step import init_state, make_train_step, state_from
from internvideo_jax.types import flatten_paths
from tests.internvideo_jax.run.test_lora import ADAPTED, MODEL, batch, built, config_of

INT8 = QuantizationConfig("int8")
KERNELS = {
    f"encoder/blocks/{name}/kernel" for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
}


def run_of(settings: QuantizationConfig, model: Any = MODEL, lora: LoraConfig | None = None):
    config = dataclasses.replace(
        config_of(lora or LoraConfig()), quantization=settings, model=model
    )
    return built(config)


@pytest.fixture(scope="module")
def params():
    """Of the model, every array drawn."""
    rng, shapes = np.random.default_rng(1), MODEL.model().shapes()
    return jax.tree.map(lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)


def test_the_config_knows_the_modes():
    assert set(EIGHT_BITS) == set(MODES) and BACKWARD == ("float", "rounded")


def test_rounded_are_attention_and_mlp_and_others_when_a_pattern_names_them():
    assert run_of(INT8).model.targets == KERNELS
    everything = run_of(QuantizationConfig("int8", (".*",))).model.targets
    assert everything == KERNELS | {"head/kernel", "encoder/patch_embed/kernel"}
    assert run_of(QuantizationConfig()).model.kernels == everything  # may be, and none is
    backbone = quantized(ProbeConfig(backbone=MODEL, classes=3).model(), INT8)
    assert isinstance(backbone, QuantizedModel)
    assert backbone.targets == {f"backbone/{path}" for path in KERNELS}


@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_stored_kernels_give_what_rounding_in_every_product_gives(params, mode):
    run = run_of(QuantizationConfig(mode))
    stored = on_devices(run.config, run.model, params, run.mesh)
    apply = jax.jit(run.model.apply)
    found = apply(stored, batch()["video"])
    np.testing.assert_allclose(found, apply(params, batch()["video"]), rtol=1e-6, atol=1e-6)
    exact = jax.jit(MODEL.model().apply)(params, batch()["video"])
    difference = np.abs(found - exact).max() / np.abs(exact).max()
    assert 1e-5 < difference < 0.2, difference
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(stored))
    assert stored_bytes(run.model) == (sum(x.nbytes for x in jax.tree.leaves(params)), held)
    small = flatten_paths(stored)["encoder/blocks/mlp/fc1/kernel/" + mode]
    assert small.nbytes * 4 == params["encoder"]["blocks"]["mlp"]["fc1"]["kernel"].nbytes


@pytest.mark.slow
def test_layers_in_a_loop_and_recomputed_ones_are_the_same(params):
    """Loss and gradient, whatever the form in which the stack is computed."""

    def gradient(**form: Any) -> dict[str, Any]:
        run = run_of(INT8, dataclasses.replace(MODEL, **form))
        loss = lambda p: (run.model.apply(p, batch()["video"]) ** 2).sum()  # noqa: E731
        return flatten_paths(jax.jit(jax.value_and_grad(loss))(params))

    plain = gradient()
    for form in ({"remat": "full"}, {"remat": "dots"}, {"scan": False}):
        for path, value in gradient(**form).items():
            scale = np.abs(plain[path]).max()
            np.testing.assert_allclose(
                value, plain[path], rtol=1e-3, atol=1e-4 * scale, err_msg=f"{form} {path}"
            )


@pytest.fixture(scope="module")
def learned(params):
    run = run_of(QuantizationConfig("int8", backward="rounded"))
    step, state, losses = make_train_step(run), state_from(run, params), []
    for _ in range(15):
        state, metrics = step(state, batch())
        losses.append(float(metrics["train/loss"]))
    return run, jax.device_get(state), losses


def test_float_parameters_learn_under_the_same_names(learned, params):
    run, state, losses = learned
    assert losses[-1] < 0.5 * losses[0], losses
    found = flatten_paths(state.params)
    assert found.keys() == flatten_paths(params).keys()
    assert {leaf.dtype.name for leaf in found.values()} == {"float32"}
    for path in KERNELS:
        assert np.abs(found[path] - flatten_paths(params)[path]).max() > 0, path
    counted = count_flops(run)
    # Two of three products with these kernels, of four that a token meets.
    assert 0.1 < counted.int8 / counted.total < 2 / 3
    assert count_flops(run_of(QuantizationConfig())).int8 == 0
    assert count_flops(run_of(QuantizationConfig("fp8"))).fp8 > 0
    assert "rounded in every product" in run.summary


def test_a_checkpoint_is_one_of_the_model_in_float(learned, tmp_path):
    run, state, _ = learned
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(asynchronous=False))
    meta = {"config": as_plain(run.config)}
    checkpoints.save(3, state, meta)
    checkpoints.wait()
    in_float = dataclasses.replace(run.config, quantization=QuantizationConfig())
    model, found = load(in_float, str(tmp_path), run.mesh)
    assert not isinstance(model, QuantizedModel)
    assert params_digest(found) == params_digest(state.params)
    digests = {params_digest(found)}
    for mode in EIGHT_BITS:  # and every way to read it has a digest of its own
        config = dataclasses.replace(run.config, quantization=QuantizationConfig(mode))
        digests.add(params_digest(load(config, str(tmp_path), run.mesh)[1]))
    assert len(digests) == 1 + len(EIGHT_BITS)
    # In Python programs a run keeps its numbers unless it is told otherwise.
    assert ivj.load(tmp_path).nbytes < ivj.load(tmp_path, quantization="none").nbytes
    assert ivj.load(tmp_path, quantization="fp8w").digest in digests


@pytest.mark.slow
def test_kernels_with_adapters_are_rounded_after_these_are_added():
    run = run_of(INT8, lora=ADAPTED)
    state = init_state(run)
    step = make_train_step(run)
    for _ in range(2):
        state, metrics = step(state, batch())
    assert np.isfinite(float(metrics["train/loss"]))
    assert set(state.params) == {"head", "lora"} and count_flops(run).int8 > 0


def test_results_made_with_other_numbers_are_not_mixed(tmp_path):
    place = str(tmp_path / "features.json")
    said = {"windows": 1, "params_digest": "a", "data_fingerprint": "b", "model": {}}
    check_same(place, said, "windows")
    check_same(place, said, "windows")
    for settings in (INT8, QuantizationConfig("int8w")):
        stated = run_of(settings).model.stated
        with pytest.raises(ValueError, match="made with another quantization"):
            check_same(place, {**said, "quantization": stated}, "windows")
    other = str(tmp_path / "int8.json")
    check_same(other, {**said, "quantization": json.loads(json.dumps(stated))}, "windows")
    with pytest.raises(ValueError, match="made with another quantization"):
        check_same(other, said, "windows")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("attn/kv",)}, "config.quantization.targets pattern 'attn/kv' matches no"),
        ({"targets": ("norm1/scale",)}, "norm1/scale, which is no kernel that products can round"),
        ({"targets": ("(",)}, r"targets pattern '\(' is no regular expression: missing \)"),
        ({"targets": ()}, "no config.quantization.targets: nothing is rounded"),
    ],
)
def test_patterns_that_round_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run_of(QuantizationConfig("int8", **settings))


def test_devices_without_such_products_are_named():
    def device(kind: str, platform: str) -> Any:
        return SimpleNamespace(device_kind=kind, platform=platform)

    v5e, v7 = device("TPU v5 lite", "tpu"), device("TPU7x", "tpu")
    h100 = device("NVIDIA H100 80GB HBM3", "gpu")
    assert "TPU v5 lite is not known to multiply fp8" in emulated("fp8", v5e)
    assert "cpu is not known to multiply int8" in emulated("int8", device("cpu", "cpu"))
    for mode, kind in (("int8", v5e), ("fp8", v7), ("fp8", h100), ("fp8w", v5e), ("int8", h100)):
        assert not emulated(mode, kind)
    run = run_of(INT8)
    assert "instead of" in note(run.model, run.mesh) and not note(MODEL.model(), run.mesh)
