"""BertAdam from a config, and the schedules of the video-language recipes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.config import OptimConfig
from internvideo_jax.optim.factory import make_optimizer
from internvideo_jax.optim.schedules import floored_cosine, make_schedule, unshifted_cosine

SHAPES = {
    "one": {"kernel": jax.ShapeDtypeStruct((3, 4), jnp.float32)},
    "two": {"bias": jax.ShapeDtypeStruct((4,), jnp.float32)},
}


def step(config: OptimConfig, gradient: float):
    params = jax.tree.map(lambda s: jnp.full(s.shape, 2.0), SHAPES)
    optimizer = make_optimizer(config, SHAPES, lambda step: 0.1)
    gradients = {
        "one": {"kernel": jnp.full((3, 4), gradient)},
        "two": {"bias": jnp.full((4,), 1e-3)},
    }
    moved, _, _ = optimizer.update(gradients, optimizer.init(params), params, jnp.int32(0))
    return np.asarray(2.0 - moved["one"]["kernel"]), np.asarray(2.0 - moved["two"]["bias"])


def test_no_bias_correction_decay_by_name_and_tensors_clipped_alone():
    config = OptimConfig(algorithm="bert_adam", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2)
    kernel, bias = step(config, 100.0)
    clipped = 1 / np.sqrt(12)  # the kernel's gradient has norm 1 afterwards, the bias is as it was

    def direction(gradient):
        return 0.1 * gradient / (np.sqrt(0.02) * gradient + 1e-6)

    np.testing.assert_allclose(kernel, 0.1 * (direction(clipped) + 0.2 * 2.0), rtol=1e-4)
    np.testing.assert_allclose(bias, 0.1 * direction(1e-3), rtol=1e-3)
    kernel, _ = step(config, 1e-4)
    np.testing.assert_allclose(kernel, 0.1 * (direction(1e-4) + 0.2 * 2.0), rtol=1e-3)


def test_an_unknown_algorithm_is_named():
    with pytest.raises(ValueError, match="unknown config.optim.algorithm 'sgd'"):
        make_optimizer(OptimConfig(algorithm="sgd"), SHAPES, lambda step: 0.1)


@pytest.mark.parametrize(
    "schedule", [floored_cosine(1e-3, 1e-5, 50, 7), unshifted_cosine(1e-3, 50, 5)]
)
def test_schedules_agree_between_numpy_and_jax(schedule):
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(60))
    np.testing.assert_allclose(traced, schedule(np.arange(60)), rtol=1e-5, atol=1e-8)


def test_the_schedules_by_name():
    floored = make_schedule("floored", 1.0, 0.01, 0.0, 5, 40)(np.arange(50))
    assert floored[0] == 0.01 and floored[5] == 1.0 and (floored[38:] == 0.01).all()
    unshifted = make_schedule("unshifted", 1.0, 0.0, 0.0, 4, 40)(np.arange(41))
    assert unshifted[0] == unshifted[40] == 0.0
    assert unshifted[3] == 0.75 and unshifted[4] == pytest.approx(0.97553, abs=1e-5)
    for kind, final, start, message in (
        ("floored", 0.0, 0.1, "warms up from 0"),
        ("unshifted", 0.1, 0.0, "ends at 0, found 0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            make_schedule(kind, 1.0, final, start, 4, 40)
