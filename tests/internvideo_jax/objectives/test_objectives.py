"""What the golden cases do not cover: checks before a run, counted operations, exact means."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.masked_pixels import MaskedPixels

SMALL = {"frames": 4, "resolution": 32, "dtype": "float32"}


@pytest.fixture(scope="module")
def pretrain():
    config = PretrainConfig.of_size("tiny", decoder_depth=1, **SMALL)
    model = config.model()
    return model, model.init(jax.random.key(0))


def clips(batch: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "video": jnp.asarray(rng.integers(0, 256, (batch, 4, 32, 32, 3), np.uint8)),
        "label": jnp.arange(batch) % 3,
        "position": jnp.arange(batch, dtype=jnp.uint32),
    }


def part(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


@pytest.mark.parametrize("decoder_ratio", [0.0, 0.5])
def test_parts_of_a_batch_add_up_to_the_whole(pretrain, decoder_ratio):
    """Masks follow positions, so splitting a batch changes neither them nor the loss."""
    model, params = pretrain
    objective = MaskedPixels(mask_ratio=0.75, decoder_ratio=decoder_ratio)
    key, step, batch = jax.random.key(3), jnp.int32(0), clips(6)
    loss = jax.jit(lambda batch: objective.loss(model, params, batch, key, step)[0])
    whole = loss(batch)
    parts = [loss(part(batch, rows)) for rows in (slice(0, 2), slice(2, 6))]
    total = sum(float(mean.total) for mean in parts)
    weight = sum(float(mean.weight) for mean in parts)
    assert weight == float(whole.weight)
    np.testing.assert_allclose(total / weight, float(whole.value()), rtol=1e-5)


def test_masks_change_with_the_position_and_the_run(pretrain):
    model, _ = pretrain
    objective = MaskedPixels(mask_ratio=0.75)
    keys = jax.random.split(jax.random.key(0), 2)
    one, _ = objective.draw(model.config, jax.random.split(keys[0], 8))
    two, _ = objective.draw(model.config, jax.random.split(keys[1], 8))
    assert len(np.unique(np.asarray(one), axis=0)) > 1
    assert not np.array_equal(one, two)


def test_a_mask_that_leaves_nothing_is_refused(pretrain):
    model, _ = pretrain
    with pytest.raises(ValueError, match="ratio"):
        MaskedPixels(mask_ratio=1.0).check(model.config)
    with pytest.raises(ValueError, match="mask"):
        MaskedPixels(mask="tubes").check(model.config)


def test_counted_operations_follow_what_is_seen_and_decoded(pretrain):
    config = pretrain[0].config
    thin, thick = (
        MaskedPixels(mask_ratio=0.5).flops(config),
        MaskedPixels(mask_ratio=0.75).flops(config),
    )
    dual = MaskedPixels(mask_ratio=0.75, decoder_ratio=0.5).flops(config)
    assert thin > thick > dual > 0


def test_counted_operations_are_those_of_the_compiled_step():
    """XLA's own count of the unrolled forward pass, matmuls dominating, within a tenth."""
    config = VideoMAEClassifierConfig.of_size(
        "tiny", frames=4, resolution=64, dtype="float32", scan=False, classes=10
    )
    model = config.model()
    params, video = model.init(jax.random.key(0)), jnp.zeros((2, 4, 64, 64, 3))
    compiled = jax.jit(lambda p, v: model.apply(p, v)).lower(params, video).compile()
    counted = compiled.cost_analysis()["flops"]
    assert 0.9 < 2 * Classification().flops(config) / 3 / counted < 1.02


def test_accuracy_is_logged_only_where_labels_are_whole():
    config = VideoMAEClassifierConfig.of_size("tiny", classes=3, **SMALL)
    model = config.model()
    params, batch = model.init(jax.random.key(0)), clips(4)
    key, step = jax.random.key(1), jnp.int32(0)

    def logged(objective):
        return jax.eval_shape(lambda: objective.loss(model, params, batch, key, step)[1])

    plain, mixed = logged(Classification(mixup=0.0, cutmix=0.0)), logged(Classification())
    assert set(plain) == {"accuracy"} and not mixed


class Recorder:
    """A model that keeps the clips it is shown."""

    config = VideoMAEClassifierConfig.of_size("tiny", classes=3, **SMALL)

    def apply(self, params, video, keys):
        del params, keys
        self.video = video
        return jnp.zeros((len(video), 3))


def shown(**settings):
    """A function from a batch to the clips that the model is shown."""
    objective = Classification(**{"mixup": 0.0, "cutmix": 0.0, **settings})

    @jax.jit
    def run(batch):
        recorder = Recorder()
        objective.loss(recorder, {}, batch, jax.random.key(1), jnp.int32(0))
        return recorder.video

    return run


def test_erasing_follows_positions_and_comes_before_mixing():
    batch, settings = clips(8), {"erasing": 0.5, "erasing_mode": "const"}
    plain = np.asarray(batch["video"]) / np.float32(255)
    erase = shown(**settings)
    erased = np.asarray(erase(batch))
    changed = ~np.isclose(erased, plain, atol=1e-6)
    assert 0 < changed.any(axis=(1, 2, 3, 4)).sum() < 8
    mean = np.broadcast_to(np.float32(Recorder.config.pixel_mean), erased.shape)
    np.testing.assert_allclose(erased[changed], mean[changed], atol=1e-6)
    order = np.array([3, 0, 7, 1, 2, 6, 5, 4])
    np.testing.assert_array_equal(erase(part(batch, order)), erased[order])
    # Every pixel of a CutMix batch is one of the erased clips.
    mixed = np.asarray(shown(cutmix=1.0, **settings)(batch))
    assert (np.isclose(mixed, erased) | np.isclose(mixed, erased[::-1])).all()
    assert not np.isclose(mixed, erased).all()


def test_wrong_erasing_is_refused():
    with pytest.raises(ValueError, match="erasing mode 'noise'"):
        Classification(erasing_mode="noise").check(None)
    with pytest.raises(ValueError, match="erasing probability"):
        Classification(erasing=2.0).check(None)
