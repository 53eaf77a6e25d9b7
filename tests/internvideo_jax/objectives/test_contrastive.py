"""The contrastive objective: microbatches, the temperature's bound, the guard, what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax import registry
from internvideo_jax.config import OptimConfig, TrainConfig
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.objectives.contrastive import Contrastive, clamped
from internvideo_jax.parallel.microbatch import cached_value_and_gradient, value_and_gradient
from internvideo_jax.protocols import ClipInput, Inputs, TextInput, Traits
from internvideo_jax.run.build import build
from internvideo_jax.run.step import make_train_step, state_from
from internvideo_jax.types import flatten_paths

ROWS, WIDTH = 8, 6


class TwoTowers(nnx.Module):
    """Mean of the visible 4 x 4 patches of 2 frames, and mean of word vectors, each projected."""

    def __init__(self, config, *, rngs):
        self.video = nnx.Linear(48, WIDTH, rngs=rngs)
        self.words = nnx.Embed(20, WIDTH, rngs=rngs)
        self.temperature = nnx.Param(jnp.float32(config.temperature))

    def encode_video(self, video, keys=None, visible=None):
        b, t = video.shape[:2]
        patches = video.astype(jnp.float32).reshape(b, t, 2, 4, 2, 4, 3) / 255
        tokens = patches.swapaxes(3, 4).reshape(b, t * 4, 48)
        if visible is not None:
            tokens = jnp.take_along_axis(tokens, visible[..., None], axis=1)
        return jnp.tanh(self.video(tokens)).mean(axis=1)

    def encode_text(self, text_ids):
        return jnp.tanh(self.words(text_ids)).mean(axis=1)


@dataclasses.dataclass(frozen=True)
class TwoTowersConfig:
    name: str = "two_towers"
    frames: int = 2
    resolution: int = 8
    temperature: float = 0.05
    inputs = Inputs(
        ClipInput(2, 8, (2, 2, 2), 1, 4, (0.5,) * 3, (0.5,) * 3), TextInput(context=32, vocab=49408)
    )
    traits = Traits()
    sharding_rules = ()

    def model(self):
        return FunctionalModel(self, TwoTowers)

    def forward_flops(self, visible=8):
        return 2.0 * visible * 48 * WIDTH


def batch_of(rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "video": rng.integers(0, 256, (rows, 2, 8, 8, 3), dtype=np.uint8),
        "text": rng.integers(0, 20, (rows, 5)).astype(np.int32),
        "has_text": np.arange(rows) != 3,
        "index": np.array([0, 1, 1, 2, 3, 4, 4, 5][:rows], np.int32),
        "dataset": np.array([0, 0, 0, 0, 0, 0, 1, 1][:rows], np.int32),
        "position": np.arange(rows, dtype=np.uint32),
    }


def run_of(objective: Contrastive, accumulate: int = 1, **model):
    config = TrainConfig(
        model=TwoTowersConfig(**model),
        objective=objective,
        data=DataConfig(
            global_batch=ROWS,
            clip=ClipConfig(frames=2, stride=1, resolution=8),
            text="first",
            tokenizer="clip",
        ),
        optim=OptimConfig(lr=1e-2, lr_batch=0, warmup_epochs=0, accumulate=accumulate),
        steps=10,
    )
    return build(config, records=ROWS, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def towers():
    model = TwoTowersConfig().model()
    return model, model.init(jax.random.key(0))


def test_it_is_registered():
    assert registry.resolve("objective", "contrastive") is Contrastive


@pytest.mark.parametrize("form", ["global", pytest.param("ring", marks=pytest.mark.slow)])
def test_microbatches_give_the_loss_and_gradients_of_one_batch(towers, form):
    model, params = towers
    objective, batch, key = Contrastive(mask_ratio=0.5, form=form), batch_of(), jax.random.key(1)

    def whole(params, part):
        return objective.loss(model, params, part, key, jnp.int32(0))

    def embed(params, part):
        return objective.embed(model, params, part, key, jnp.int32(0))

    one = jax.jit(lambda p, b: value_and_gradient(whole, p, b, 1))(params, batch)
    four = jax.jit(lambda p, b: cached_value_and_gradient(embed, objective.compare, p, b, 4))(
        params, batch
    )
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(one[1])) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), four, one)
    # Averaging the losses of the parts is another loss, so this comparison could fail.
    parts = value_and_gradient(whole, params, batch, 4)
    assert abs(float(parts[0] - one[0])) > 0.1


@pytest.mark.slow  # two train steps to compile
def test_a_step_in_microbatches_is_the_step_of_one_batch():
    found = []
    for accumulate in (1, 4):
        run = run_of(Contrastive(mask_ratio=0.5), accumulate)
        params = run.model.init(jax.random.key(0))
        state, metrics = make_train_step(run)(state_from(run, params), batch_of())
        found.append((jax.device_get(metrics), state.params["temperature"]))
    (one, first), (four, second) = found
    assert set(one) >= {"train/accuracy_video_to_text", "train/accuracy_text_to_video"}
    np.testing.assert_allclose(one["train/temperature"], 0.05)
    for name in one:
        np.testing.assert_allclose(four[name], one[name], rtol=2e-5, atol=2e-6, err_msg=name)
    np.testing.assert_allclose(second, first, rtol=1e-6)


def test_rows_of_one_record_or_without_a_caption(towers):
    """Against the batch in which the row without a caption is not there at all."""
    model, params = towers
    objective, batch, key = Contrastive(), batch_of(), jax.random.key(1)
    embeddings = jax.device_get(objective.embed(model, params, batch, key, jnp.int32(0)))
    found, metrics = objective.compare(params, embeddings, batch)
    has = batch["has_text"]
    kept = {name: rows[has] for name, rows in embeddings.items()}
    compare = jax.jit(lambda rows: objective.compare(params, kept, rows)[0].value())

    def with_ids(index, dataset):
        return float(compare({"index": np.array(index), "dataset": np.array(dataset)}))

    alone = with_ids(batch["index"][has], batch["dataset"][has])
    assert float(found.weight) == ROWS - 1
    np.testing.assert_allclose(found.value(), alone, rtol=1e-6)
    np.testing.assert_allclose(metrics["temperature"].value(), 0.05, rtol=1e-6)
    # Rows 4 and 5 have one index in two sets: not the same record.
    assert with_ids([0, 1, 1, 3, 4, 4, 5], [0, 0, 0, 0, 0, 1, 1]) == alone
    assert with_ids([0, 1, 1, 3, 4, 6, 5], [0] * 7) == alone
    assert abs(with_ids([0, 1, 1, 3, 4, 4, 5], [0] * 7) - alone) > 1e-3
    assert abs(with_ids(list(range(7)), [0] * 7) - alone) > 1e-3


def test_the_temperature_learns_at_its_bound_and_stays_above_it(towers):
    assert jax.grad(lambda x: clamped(x, 0.01))(jnp.float32(0.01)) == 1.0
    assert float(clamped(jnp.float32(0.004), 0.01)) == np.float32(0.01)
    run = run_of(Contrastive(min_temperature=0.3), temperature=0.2)
    state, metrics = make_train_step(run)(state_from(run, towers[1]), batch_of())
    # A step of 0.01 from 0.2, then put back to the bound.
    assert float(state.params["temperature"]) == np.float32(0.3)
    assert float(metrics["train/temperature"]) == np.float32(0.3)


def test_a_similarity_that_is_not_a_number_skips_the_step():
    run = run_of(Contrastive(), accumulate=2)
    params = run.model.init(jax.random.key(0))
    params["words"]["embedding"] = params["words"]["embedding"].at[7].set(jnp.nan)
    before = flatten_paths(jax.device_get(params))
    batch = batch_of()
    assert 7 in batch["text"]
    state, metrics = make_train_step(run)(state_from(run, params), batch)
    assert int(metrics["train/nonfinite"]) == 1 and np.isnan(metrics["train/loss"])
    for path, value in flatten_paths(jax.device_get(state.params)).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_reference_scale_divides_the_gradients_of_the_encoders_only(command):
    module = "tests.internvideo_jax.objectives.reference_scale"
    done = command(module, devices=8, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "hinge"}, "kind = 'hinge'; expected one of softmax, sigmoid"),
        ({"form": "star"}, "form = 'star'; expected one of global, ring"),
        ({"scale": "ddp"}, "scale = 'ddp'; expected one of true, reference"),
        ({"dtype": "float16"}, "dtype = 'float16'; expected one of float32, bfloat16"),
        ({"min_temperature": 0.0}, "min_temperature = 0.0; expected a positive number"),
        ({"mask_ratio": 1.0}, "leaves 0 of 8 tokens visible"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Contrastive(**changes).check(TwoTowersConfig())


def test_a_model_or_data_without_text_is_named(towers):
    @dataclasses.dataclass(frozen=True)
    class Silent(TwoTowersConfig):
        inputs = dataclasses.replace(TwoTowersConfig.inputs, text=None)

    with pytest.raises(ValueError, match="needs a model that reads text.*'two_towers'"):
        Contrastive().check(Silent())
    batch = {name: rows for name, rows in batch_of().items() if name != "text"}
    with pytest.raises(ValueError, match=r"needs captions.*config\.data\.text"):
        Contrastive().loss(*towers, batch, jax.random.key(0), jnp.int32(0))


def test_counted_operations_follow_what_is_kept():
    whole, half = (Contrastive(mask_ratio=ratio).flops(TwoTowersConfig()) for ratio in (0.0, 0.5))
    assert whole == 2 * half == 3 * 2 * 8 * 48 * WIDTH
