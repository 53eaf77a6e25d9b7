"""Saving, restoring, starting from other weights, and every way these can be refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.stream.identity import digest
from internvideo_jax.checkpoint import initial, metadata
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.config import CheckpointConfig, DataConfig, OptimConfig, TrainConfig
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.layers.pos_embed import sincos
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.ops.resize import resize_table
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files
from tests.conftest import ROOT
from tests.internvideo_jax import small

SMALL = small.clip()
GOLDEN = ROOT / "tests/golden/videomae"


def run(**optim):
    config = TrainConfig(
        model=PretrainConfig.of_size("tiny", decoder_depth=1, **SMALL),
        objective=MaskedPixels(mask_ratio=0.5),
        data=DataConfig(global_batch=2),
        optim=OptimConfig(**optim),
        steps=10,
    )
    clip = dataclasses.replace(config.data.clip, frames=4, resolution=16)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, clip=clip))
    return build(config, records=10)


def equal(a, b) -> bool:
    a, b = flatten_paths(a), flatten_paths(b)
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_saved_state_comes_back_bit_for_bit(tmp_path, asynchronous):
    prepared = run(ema_decay=0.9)
    state = init_state(prepared)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(asynchronous=asynchronous, keep=2))
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, state.replace(step=jnp.int32(step)), {"note": "x"})
    checkpoints.wait()
    assert checkpoints.latest() == 3
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["2", "3"]
    restored = checkpoints.restore(3, prepared.plan.shapes, prepared.plan.shardings)
    assert int(restored.step) == 3 and equal(restored.params, state.params)
    assert equal(restored.ema, state.ema) and equal(restored.opt_state, state.opt_state)
    assert checkpoints.meta(3)["note"] == "x" and checkpoints.meta(3)["layout"] == 1
    checkpoints.close()


def test_another_optimizer_or_model_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, init_state(run()), {})
    checkpoints.wait()
    other = run(ema_decay=0.9)
    with pytest.raises(ValueError, match="ema/decoder/.*: found absent, expected float32"):
        checkpoints.restore(1, other.plan.shapes, other.plan.shardings)
    checkpoints.close()


def test_data_identity_is_checked_and_the_difference_listed(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, init_state(run()), {"data": {"seed": 0, "first": (1, 2)}})
    checkpoints.wait()
    checkpoints.check_data(1, {"seed": 0, "first": [1, 2]})
    with pytest.raises(ValueError, match="seed: found 4, the checkpoint has 0") as error:
        checkpoints.check_data(1, {"seed": 4, "first": [1, 2]})
    for data in ({"seed": 4, "first": [1, 2]}, {"seed": 0, "first": [1, 2]}):
        assert digest(data) in str(error.value)
    checkpoints.close()
    accepting = Checkpoints(tmp_path, CheckpointConfig(accept_new_data=True))
    accepting.check_data(1, {"seed": 4, "first": [1, 2]})
    accepting.close()


def test_a_disk_that_cannot_hold_the_next_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    state = init_state(run())
    checkpoints.save(1, state, {})
    checkpoints.wait()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        RuntimeError,
        match=r"step 0 \(0 MiB free, \d+ MiB needed\).*step 1 in .* is"
        " complete. Free space",
    ):
        checkpoints.save(2, state, {})
    monkeypatch.undo()
    assert checkpoints.latest() == 1
    checkpoints.save(2, state, {})
    checkpoints.close()


def test_what_init_from_accepts(tmp_path):
    prepared = run(ema_decay=0.9)
    state = init_state(prepared)
    state = state.replace(ema=jax.tree.map(lambda p: p + 1, state.params))
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig())
    checkpoints.save(
        7, state, {"config": {"model": {"name": "videomae_pretrain", "tubelet": 2, "patch": 8}}}
    )
    checkpoints.wait()
    checkpoints.close()
    exported = tmp_path / "exported.safetensors"
    files.save_torch(exported, initial.checkpoint_weights(tmp_path / "run"))
    ours = tmp_path / "ours.safetensors"
    files.save_ours(ours, initial.checkpoint_weights(tmp_path / "run"))
    for place in (
        tmp_path / "run",
        tmp_path / "run/checkpoints",
        tmp_path / "run/checkpoints/7",
        exported,
        ours,
    ):
        loaded = initial.load_params(str(place))
        # The averaged parameters, since the run kept them.
        assert equal(loaded, state.ema), place
    for nothing in (tmp_path / "empty", tmp_path / "run/checkpoints/8"):
        with pytest.raises(ValueError, match="no checkpoint here; expected a run directory"):
            initial.load_params(str(nothing))


def test_a_classifier_takes_the_encoder_of_a_pretrained_torch_file():
    path = GOLDEN / "pretrain_v2_dual/weights.safetensors"
    source = files.load(path).params
    config = VideoMAEClassifierConfig.of_size(
        "tiny", classes=5, frames=4, resolution=32, dtype="float32"
    )
    config = dataclasses.replace(
        config, encoder=dataclasses.replace(config.encoder, width=48, depth=2, heads=3, hidden=192)
    )
    fresh = config.model().init(jax.random.key(0))
    params, report = initial.initialise(str(path), fresh, config)
    flat, before = flatten_paths(params), flatten_paths(fresh)
    for name in flat:
        expected = source[name] if name in source else before[name]
        assert np.array_equal(flat[name], expected), name
    assert set(report.fresh) == {"fc_norm/scale", "fc_norm/bias", "head/kernel", "head/bias"}
    assert "encoder/norm/scale" in report.skipped and "mask_token" in report.skipped
    assert len(report.loaded) == 15 and not report.resized


def stored(params: Mapping[str, Any], path: Path) -> None:
    """A weight file of a VideoMAE classifier."""
    arrays = {name: np.asarray(value) for name, value in params.items()}
    files.save_ours(path, files.Weights("videomae_classifier", arrays, {"tubelet": 2, "patch": 8}))


def table_config(frames: int, size: int, **changes) -> VideoMAEClassifierConfig:
    return VideoMAEClassifierConfig.of_size(
        "tiny",
        classes=3,
        frames=frames,
        resolution=size,
        pos_table="learnable",
        dtype="float32",
        **changes,
    )


def test_position_tables_are_resized_with_the_kernels_of_the_reference(tmp_path):
    small, large = table_config(8, 32), table_config(8, 48)
    params = flatten_paths(small.model().init(jax.random.key(0)))
    table = sincos(small.tokens, 96)
    params["encoder/pos_embed"] = table
    stored(params, tmp_path / "small.safetensors")
    fresh = large.model().init(jax.random.key(1))
    loaded, report = initial.initialise(str(tmp_path / "small.safetensors"), fresh, large)
    assert report.resized == ("encoder/pos_embed",)
    # A file does not say its length; as in the reference it is that of the model.
    expected = resize_table(table, (4, 4, 4), large.grid)
    np.testing.assert_allclose(loaded["encoder"]["pos_embed"], expected, atol=1e-6)
    assert "resized: 1: encoder/pos_embed" in report.text()


def test_a_head_for_other_classes_stays_fresh(tmp_path):
    three = VideoMAEClassifierConfig.of_size("tiny", classes=3, **SMALL)
    five = dataclasses.replace(three, classes=5)
    params = flatten_paths(three.model().init(jax.random.key(0)))
    stored(params, tmp_path / "w.safetensors")
    fresh = five.model().init(jax.random.key(1))
    _, report = initial.initialise(str(tmp_path / "w.safetensors"), fresh, five)
    assert report.fresh == ("head/bias", "head/kernel")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 4}, "encoder/patch_embed/kernel: found"),
        ({"tubelet": 4}, "encoder/patch_embed/kernel: found"),
    ],
)
def test_weights_that_cannot_fit(tmp_path, changes, message):
    config = VideoMAEClassifierConfig.of_size("tiny", classes=3, **SMALL)
    params = flatten_paths(config.model().init(jax.random.key(0)))
    stored(params, tmp_path / "w.safetensors")
    other = dataclasses.replace(config, **changes)
    with pytest.raises(ValueError, match=message):
        initial.initialise(
            str(tmp_path / "w.safetensors"), other.model().init(jax.random.key(0)), other
        )


def test_digests_tell_parameters_apart():
    params = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}
    digest = metadata.params_digest(params)
    assert digest == metadata.params_digest({"b": params["b"], "a": params["a"]})
    changed = {"a": params["a"].at[0].set(1e-30), "b": params["b"]}
    assert digest != metadata.params_digest(changed)


def test_versions_name_what_decides_the_numbers():
    found = metadata.versions()
    assert {"jax", "flax", "optax", "orbax-checkpoint", "grain", "internvideo_jax"} <= found.keys()
