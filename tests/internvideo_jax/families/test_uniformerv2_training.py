"""Recipes of UniFormerV2, running statistics through the train step, the frozen backbone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.config import OptimConfig, TrainConfig, as_plain, to_typed
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step
from internvideo_jax.types import flatten_paths
from tests.internvideo_jax import small
from tests.recipes import shipped


def recipe(arg: str):
    return shipped.module("uniformerv2/finetune.py").get_config(arg).to_dict()


@pytest.mark.parametrize(
    ("arg", "batch", "lr", "views"),
    [
        ("size=tiny", 16, 1e-3, (1, 1)),
        ("size=tiny,backbone=frozen", 16, 1e-3, (1, 1)),
        ("size=base", 256, 1e-5, (4, 3)),
        ("size=large,start=k710", 256, 1.5e-6, (4, 3)),
        ("size=large336,backbone=frozen", 512, 8e-4, (3, 1)),
        ("size=large,data=something", 256, 2e-5, (1, 3)),  # 128 videos, two crops of each
        ("size=large,data=activitynet", 64, 5e-6, (10, 3)),
    ],
)
def test_recipes_survive_the_schema(arg, batch, lr, views):
    plain = recipe(arg)
    typed = to_typed(TrainConfig, plain)
    assert as_plain(typed) == as_plain(plain)
    clip, test = typed.data.clip, typed.evals["test"].views
    assert (clip.frames, clip.resolution) == (typed.model.frames, typed.model.resolution)
    assert (typed.data.global_batch, typed.optim.lr) == (batch, lr)
    assert (test.clips, test.crops) == views and test.clip.sampling == clip.sampling == "stepped"
    assert typed.model.frozen == bool(typed.optim.freeze) == ("frozen" in arg)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("size=bas", "did you mean 'base'"),
        ("backbone=froze", "did you mean 'frozen'"),
        ("size=base,data=activitynet", "no recipe for data=activitynet,start=clip,size=base"),
        ("size=base,data=moments,backbone=frozen", "no recipe for .*backbone=frozen; known"),
    ],
)
def test_recipes_that_do_not_exist(arg, message):
    with pytest.raises(ValueError, match=message):
        recipe(arg)


def run_of(accumulate: int = 1, freeze: tuple[str, ...] = (), **changes):
    settings = {"local_blocks": 2, "temporal_downsample": True, "frozen": bool(freeze), **changes}
    model = UniFormerV2Config(
        encoder=tower(16, 2, 2),
        classes=3,
        global_layers=(0, 1),
        mlp_dropout=0.0,
        head_dropout=0.0,
        **small.clip(),
        **settings,
    )
    config = TrainConfig(
        model=model,
        objective=Classification(smoothing=0.0, mixup=0.0, cutmix=0.0),
        data=DataConfig(global_batch=8, clip=ClipConfig(frames=4, stride=1, resolution=16)),
        optim=OptimConfig(
            lr=0.01,
            lr_batch=0,
            schedule="slowfast",
            warmup_lr=0.01,
            accumulate=accumulate,
            freeze=freeze,
            decay_also=("^encoder/pos_embed/table$", "^temporal_cls_token$"),
        ),
        steps=4,
    )
    return build(config, records=8, classes=3)


def steps(run, count: int = 1):
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (8, 4, 16, 16, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, 8).astype(np.int32),
        "position": np.arange(8, dtype=np.uint32),
    }
    state, train = init_state(run), make_train_step(run)
    before = jax.tree.map(np.asarray, state.params)
    metrics = {}
    for _ in range(count):
        state, metrics = train(state, batch)
    return before, state, metrics, batch


@pytest.mark.slow
def test_running_statistics_follow_the_batch_and_nothing_else_moves_them():
    run = run_of()
    before, state, metrics, batch = steps(run)
    assert not any("statistics" in name for name in metrics)
    keys = jax.random.split(jax.random.key(1), 8)
    train = jax.jit(functools.partial(run.model.apply, method="train"))
    _, expected = train(before, batch["video"], keys)
    after = flatten_paths(state.params)
    assert expected.keys() == {p for p in after if p.endswith(("norm/mean", "norm/var"))}
    for path, value in expected.items():
        np.testing.assert_allclose(after[path], value, atol=1e-6, err_msg=path)
        assert not np.array_equal(after[path], flatten_paths(before)[path])


@pytest.mark.slow  # compiles two train steps
def test_microbatches_average_their_statistics():
    whole, parts = (flatten_paths(steps(run_of(n))[1].params) for n in (1, 2))
    path = "encoder/blocks/local1/norm/mean"  # of the first layer: the same input either way
    np.testing.assert_allclose(parts[path][0], whole[path][0], atol=1e-6)


def test_a_frozen_backbone_stays_and_has_no_optimizer_state():
    run = run_of(freeze=("^encoder/",), local_blocks=0)
    before, state, metrics, _ = steps(run, 2)
    assert metrics["train/grad_norm"] > 0
    for path, value in flatten_paths(state.params).items():
        same = np.array_equal(value, flatten_paths(before)[path])
        # The query bias of attention over equal keys and the like may stay; a block does not.
        assert not path.startswith("encoder/") or same, path
    moved = flatten_paths(state.params)["global_blocks/attn/proj/kernel"]
    assert np.abs(moved).max() > 0
    moments = [path for path in flatten_paths(state.opt_state) if "/mu/" in path]
    assert moments and not any("encoder/" in path for path in moments)


def test_an_unknown_schedule_or_pattern_is_named():
    run = run_of()
    for change, message in (
        ({"schedule": "linear"}, "unknown config.optim.schedule 'linear'"),
        ({"decay_also": ("tabel",)}, "config.optim.decay_also pattern 'tabel' matches no"),
    ):
        optim = dataclasses.replace(run.config.optim, **change)
        with pytest.raises(ValueError, match=message):
            build(dataclasses.replace(run.config, optim=optim), records=8, classes=3)
