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

PROGRAMS = "from tests.internvideo_jax.ops import contrastive_on_devices as run"


@pytest.fixture
def run(program):
    def run(call: str, devices: int) -> None:
        done = program(f"{PROGRAMS}; run.{call}", devices=devices, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def test_loss_and_gradients_on_eight_devices(run):
    run("loss_and_gradients_on_eight_devices()", 8)


@pytest.mark.slow  # a loss and its formula to compile four times
@pytest.mark.parametrize("form", ["global", "ring"])
def test_loss_and_gradients_on_one_two_and_eight_devices(run, form):
    run(f"loss_and_gradients_on_one_two_and_eight_devices({form!r})", 8)


def test_no_device_of_the_ring_holds_the_similarities_with_a_whole_block(run):
    """The largest array in the traced program, of one device where shard_map has split it."""
    run("no_device_of_the_ring_holds_the_similarities_with_a_whole_block()", 8)


@pytest.mark.slow  # two processes that each start and compile
def test_two_processes_give_the_loss_and_gradients_of_the_formula():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", f"{PROGRAMS}; run.two_processes()"],
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
    run("a_batch_that_the_devices_cannot_share_is_named()", 2)
