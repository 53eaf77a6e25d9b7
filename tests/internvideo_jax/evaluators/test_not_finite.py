"""Scores and features that are NaN or infinite end an evaluation; nothing is counted from them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from internvideo_jax.config import MeshConfig
from internvideo_jax.evaluators import base, metrics
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.evaluators.knn import NearestNeighbours
from internvideo_jax.evaluators.probe_grid import ProbeGrid
from internvideo_jax.evaluators.probes import AttentiveProbe, ConcatProbe, LinearProbe
from internvideo_jax.evaluators.reconstruction import Reconstruction
from internvideo_jax.evaluators.video_text import logit_scale
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.protocols import Classes, ClipInput, Inputs, TokenFeatures, Traits

WIDTH = 8
VIEWS = ViewConfig(clip=ClipConfig(frames=4, resolution=16, sampling="dense"), batch=8)


@dataclasses.dataclass(frozen=True)
class Config:
    """What evaluators ask of a model's config."""

    name: str = "probe"
    frames: int = 4
    resolution: int = 16
    classes: int = 0
    hold_out: int = 5
    learning_rates: tuple[float, ...] = (0.1, 0.2, 0.3)
    weight_decays: tuple[float, ...] = (0.0,)

    @property
    def pairs(self):
        return tuple((rate, 0.0) for rate in self.learning_rates)

    @property
    def inputs(self):
        grid, tubelet, patch = (1, 2, 2), 4, 8
        return Inputs(
            ClipInput(self.frames, self.resolution, grid, tubelet, patch, (0,) * 3, (1,) * 3)
        )

    @property
    def traits(self):
        features = TokenFeatures(tokens=4, width=WIDTH, flops=0.0)
        return Traits(classifier=Classes(self.classes), features=features, heads=self)


class StandIn:
    """A linear network with what every evaluator calls, small to compile."""

    def __init__(self, config: Config, heads: bool = False):
        self.config, self.heads = config, heads

    def init(self, heads: int = 3) -> dict:
        rng = np.random.default_rng(0)
        kernel = rng.normal(size=(heads, WIDTH, self.config.classes)).astype("float32")
        inside = rng.normal(size=(8 * 8 * 3, WIDTH)).astype("float32")
        return {"inside": inside, "heads": {"kernel": kernel}}

    def has(self, method: str) -> bool:
        return False

    def apply(self, params, video, *rest, method=None):
        cells = jnp.asarray(video, "float32").mean(1).reshape(-1, 2, 8, 2, 8, 3) / 255
        tokens = cells.swapaxes(2, 3).reshape(len(video), 4, -1) @ params["inside"]
        if method == "features":
            return tokens
        if rest:  # predicted pixels of the hidden tokens
            return jnp.zeros((len(video), rest[1].shape[1], 4 * 8 * 8 * 3)) + tokens.mean()
        logits = jnp.einsum("bd,pdk->pbk", tokens.mean(1), params["heads"]["kernel"])
        return logits if self.heads else logits[0]


@pytest.fixture(scope="module")
def contexts(shards):
    """A context of one model, shared by the tests so that each program compiles once."""
    from data_pipelines.records import manifest

    config = Config(classes=len(manifest.load(str(shards)).classes))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    data = DataConfig(train=str(shards), eval=str(shards))
    made = {
        heads: EvalContext(StandIn(config, heads), mesh, data, progress=False)
        for heads in (False, True)
    }
    for context in made.values():
        context.params = context.model.init()
    return made


TASKS = {
    "classification": Accuracy(views=VIEWS),
    "knn": NearestNeighbours(views=VIEWS, max_clips=12),
    "linear_probe": LinearProbe(views=VIEWS, steps=3, batch=8, max_clips=12),
    "concat_probe": ConcatProbe(views=VIEWS, steps=3, batch=8, max_clips=12),
    "attentive_probe": AttentiveProbe(views=VIEWS, steps=3, batch=8, max_clips=12, heads=2),
    "reconstruction": Reconstruction(views=VIEWS, mask_ratio=0.5, pictures=0),
    "probe_grid": ProbeGrid(views=VIEWS),
}
WHAT = {"classification": "scores", "probe_grid": "scores", "reconstruction": "predictions"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("task", TASKS)
def test_an_evaluator_stops_and_names_the_first_record(task, value, contexts):
    context = contexts[task == "probe_grid"]
    sound = context.params
    try:
        context.params = {**sound, "inside": sound["inside"] * np.float32(value)}
        what = WHAT.get(task, "features")
        with pytest.raises(
            ValueError, match=rf"the {what} of record 0( \(view 0\))? are not finite"
        ):
            TASKS[task].run(context)
    finally:
        context.params = sound


def test_sound_ones_give_numbers(contexts):
    assert 0 <= TASKS["classification"].run(contexts[False]).metrics["top1"] <= 1
    assert 0 <= TASKS["knn"].run(contexts[False]).metrics["top1"] <= 1
    found = TASKS["linear_probe"].run(contexts[False])
    assert found.protocol["train_clips"] == 12 and found.protocol["not_finite"] == 0


def test_half_precision_that_overflows_is_not_kept(contexts):
    """Tokens are kept in float16, which ends at 65504; the mean of the same tokens is not."""
    context = contexts[False]
    sound = context.params
    try:
        context.params = {**sound, "inside": sound["inside"] * np.float32(1e7)}
        with pytest.raises(ValueError, match=r"the features of record 0 \(view 0\) are not finite"):
            TASKS["attentive_probe"].run(context)
        TASKS["linear_probe"].run(context)
    finally:
        context.params = sound


def test_a_head_that_diverged_is_never_chosen(contexts):
    context = contexts[True]
    sound = context.params
    kernel = sound["heads"]["kernel"].copy()
    kernel[0] = np.nan
    try:
        context.params = {**sound, "heads": {"kernel": kernel}}
        found = TASKS["probe_grid"].run(context)
    finally:
        context.params = sound
    assert found.protocol["head"]["number"] > 0
    assert found.protocol["selection"]["not_finite"] == 1
    assert found.tables["grid"][0]["selection_top1"] == 0.0


def test_a_learning_rate_that_diverges_is_never_chosen(contexts):
    task = dataclasses.replace(TASKS["linear_probe"], learning_rates=(1e38, 1e-2), steps=20)
    found = task.run(contexts[False])
    assert found.protocol["learning_rate"] == 1e-2 and found.protocol["not_finite"] == 1
    with pytest.raises(ValueError, match="not finite after 20 steps at a learning rate of 1e.38"):
        dataclasses.replace(task, learning_rates=(1e38,)).run(contexts[False])


def test_only_rows_that_count_are_looked_at():
    values = np.array([[1.0], [np.nan], [2.0], [np.inf]])
    batch = {"index": np.array([4, 9, 5, 7]), "view": np.array([0, 0, 1, 2])}
    base.check_finite(values, batch, np.array([True, False, True, False]), "scores")
    with pytest.raises(ValueError, match=r"scores of record 7 \(view 2\) .* 2 of 4 clips"):
        base.check_finite(values, batch, np.ones(4, bool), "scores")


@pytest.mark.parametrize(
    "measure",
    [
        lambda scores, label: metrics.top_k(scores, label, 1),
        lambda scores, label: metrics.top_k(scores, label, 5, ties="last"),
        lambda scores, label: metrics.mean_class_accuracy(scores, label),
        lambda scores, label: metrics.confusion(scores, label, 4),
        lambda scores, label: metrics.average_precision(scores[:, 0], label == 0),
        lambda scores, label: metrics.mean_average_precision(scores, np.eye(4)[label]),
    ],
)
def test_nan_has_no_rank(measure, contexts):
    scores, label = np.random.default_rng(0).random((5, 4)), np.array([0, 1, 2, 3, 0])
    measure(scores, label)
    scores[2, 1] = -np.inf  # the lowest score of all, which has a rank
    measure(scores, label)
    for bad in (np.full((5, 4), np.nan), np.where(np.arange(20).reshape(5, 4) == 4, np.nan, 1.0)):
        with pytest.raises(ValueError, match="rows of scores are NaN, first row"):
            measure(bad, label)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_softmax_that_is_not_defined(bad):
    logits = np.array([[0.0, 1.0], [0.0, bad]])
    for how in ("probability", "probability_sum"):
        with pytest.raises(ValueError, match="1 of 2 rows of scores are not finite"):
            metrics.merge_views(np.arange(2), np.zeros(2, int), logits, how)
    assert metrics.softmax(np.array([0.0, -np.inf])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_no_number(scale):
    with pytest.raises(ValueError, match="expected a finite number"):
        logit_scale({"temperature": np.float32(1.0)}, scale)


def test_features_without_a_finite_length():
    from internvideo_jax.evaluators.knn import _unit

    with pytest.raises(ValueError, match="features up to 1e.30 have no finite length"):
        _unit(np.full((2, 4), 1e30, np.float32))
