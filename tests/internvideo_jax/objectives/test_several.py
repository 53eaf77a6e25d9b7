"""Several terms and several objectives in a run: counts, weights, running values, caching."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.config import TrainConfig, as_plain, to_typed
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.objectives.several import Several
from internvideo_jax.parallel.microbatch import value_and_gradient
from internvideo_jax.run.step import make_train_step, state_from
from internvideo_jax.tasks import Objective
from internvideo_jax.types import Loss, Mean, Running, Term
from tests.internvideo_jax.objectives.test_contrastive import batch_of, run_of

ROWS, KEEP = 8, 0.9
PARAMS = {"w": jnp.array([[0.5, 1.0], [2.0, -1.0]]), "norm": jnp.float32(10.0)}


def rows() -> dict[str, jax.Array]:
    """Parts of the batch, which are dealt out, have other numbers of positives than each other."""
    x = jnp.arange(2.0 * ROWS).reshape(ROWS, 2) / 10
    return {"x": x, "positive": jnp.array([1, 0, 1, 0, 1, 0, 0, 0], jnp.float32)}


def detector(params, batch):
    """Two terms over a running number of positives, as ActionFormer has them, and a third."""
    y = batch["x"] @ params["w"]
    positive, running = batch["positive"], Running("norm", KEEP)
    terms = {
        "classes": Term(Mean((y[:, 0] ** 2).sum(), positive.sum()), running=running),
        "offsets": Term(Mean.of(jnp.abs(y[:, 1]), positive), 0.5, running),
        "all": Term(Mean.of(y**2)),
    }
    mean_x = batch["x"].mean(axis=0)
    return Loss(terms, {"x": Mean.of(batch["x"])}, {"seen": Mean(mean_x, jnp.float32(1.0))})


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_count_that_is_smoothed_over_steps_divides_and_is_handed_back(parts):
    batch = rows()
    found = jax.jit(lambda p, b: value_and_gradient(detector, p, b, parts))(PARAMS, batch)
    norm = KEEP * 10.0 + (1 - KEEP) * 3.0

    def by_hand(w):
        y = batch["x"] @ w
        offsets = (jnp.abs(y[:, 1]) * batch["positive"]).sum()
        return (y[:, 0] ** 2).sum() / norm + 0.5 * offsets / norm + (y**2).mean()

    loss, gradient = jax.value_and_grad(by_hand)(PARAMS["w"])
    np.testing.assert_allclose(found.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(found.gradients["w"], gradient, rtol=1e-6)
    assert not found.gradients["norm"].any()
    np.testing.assert_allclose(found.updates["norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(found.updates["seen"], batch["x"].mean(axis=0), rtol=1e-6)
    assert set(found.metrics) == {"x", "classes", "offsets", "all"}
    np.testing.assert_allclose(found.metrics["x"], batch["x"].mean(), rtol=1e-6)


def test_without_anything_to_count_a_smoothed_count_takes_one():
    batch = {**rows(), "positive": jnp.zeros(ROWS)}
    found = value_and_gradient(detector, PARAMS, batch, 1)
    np.testing.assert_allclose(found.updates["norm"], KEEP * 10.0 + (1 - KEEP), rtol=1e-6)
    assert np.isfinite(found.loss)


def test_the_pass_that_counts_computes_nothing_else():
    """The program has as many matrix products with microbatches as without."""

    def products(parts):
        step = jax.jit(lambda params, batch: value_and_gradient(detector, params, batch, parts))
        return step.lower(PARAMS, rows()).as_text().count("dot_general")

    assert products(4) == products(1) == 2


@dataclasses.dataclass(frozen=True)
class Lengths(Objective):
    """Squares of the embeddings of clips with a caption: a loss of every example alone."""

    name: str = "lengths"

    def check(self, config: Any) -> None:
        del config

    def loss(self, model, params, batch, key, step):
        del key, step
        video = model.apply(params, batch["video"], method="encode_video")
        return Mean.of(jnp.square(video).sum(axis=-1), batch["has_text"]), {}

    def flops(self, config: Any) -> float:
        return config.forward_flops()


def test_gradient_caching_works_beside_other_terms():
    """A step of contrastive and another loss in four microbatches is the step of one batch."""
    found = []
    for accumulate in (1, 4):
        several = Several(
            of={"pairs": Contrastive(mask_ratio=0.5), "lengths": Lengths()},
            weights={"lengths": 0.3},
        )
        run = run_of(several, accumulate)  # pyright: ignore[reportArgumentType]
        params = run.model.init(jax.random.key(0))
        state, metrics = make_train_step(run)(state_from(run, params), batch_of())
        found.append(jax.device_get((metrics, state.params)))
    (one, first), (four, second) = found
    assert {"train/pairs", "train/lengths", "train/pairs/temperature"} <= set(one)
    total = one["train/pairs"] + 0.3 * one["train/lengths"]
    np.testing.assert_allclose(one["train/loss"], total, rtol=1e-6)
    assert one["train/lengths"] > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), four, one)
    np.testing.assert_allclose(second["temperature"], first["temperature"], rtol=1e-6)


def test_one_of_several_is_the_objective_alone():
    losses = []
    for objective in (Contrastive(), Several(of={"pairs": Contrastive()})):
        run = run_of(objective)  # pyright: ignore[reportArgumentType]
        params = run.model.init(jax.random.key(0))
        _, metrics = make_train_step(run)(state_from(run, params), batch_of())
        losses.append(float(metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_several_come_from_a_config_and_answer_for_all():
    plain = {
        "name": "several",
        "of": {
            "labels": {"name": "classification", "cutmix": 0.0, "mixup": 0.5},
            "pixels": {"name": "masked_pixels", "mask_ratio": 0.5},
        },
        "weights": {"pixels": 0.1},
    }
    model = VideoMAEClassifierConfig.of_size("tiny")
    objective = to_typed(TrainConfig, {"model": model, "objective": plain}).objective
    assert objective.of["pixels"] == MaskedPixels(mask_ratio=0.5)
    assert objective.pairs and not objective.across and objective.reads == ()
    again = as_plain(objective)
    assert to_typed(TrainConfig, {"model": model, "objective": again}).objective == objective


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"of": {}}, "of is empty"),
        ({"weights": {"other": 1.0}}, r"weights.other = 1.0.*labels labels"),
        ({"weights": {"labels": 0.0}}, "expected a positive number"),
    ],
)
def test_what_several_refuse(settings, message):
    given = {"of": {"labels": Classification()}, **settings}
    with pytest.raises(ValueError, match=message):
        Several(**given).check(None)
