"""Batch, warm-up and length of recipes on sets that are too small for them."""

from __future__ import annotations

import dataclasses

import pytest

from data_pipelines.recipe_files import load as load_recipe
from internvideo_jax.config import TrainConfig, to_typed, total_steps, warmup_steps
from internvideo_jax.run.build import build
from internvideo_jax.run.small import fit

PRETRAIN, FINETUNE = "videomae/pretrain:size=base", "videomae/finetune:size=base"
RECIPES = (
    *(f"{name}:size=tiny" for name in ("videomae/pretrain", "videomae/finetune", "umt/pretrain")),
    *(f"{name}:size=tiny" for name in ("uniformerv2/finetune", "viclip/pretrain", "probe")),
    *(f"internvideo2/{name}:size=tiny" for name in ("pretrain", "distill", "finetune", "probe")),
)


def recipe(name: str) -> TrainConfig:
    return to_typed(TrainConfig, load_recipe(name))


@pytest.mark.parametrize("name", [PRETRAIN, FINETUNE, "umt/finetune:recipe=l_k710"])
@pytest.mark.parametrize("records", [1, 2, 13, 100, 250])
@pytest.mark.parametrize("unit", [1, 8])
def test_a_recipe_that_cannot_run_gets_what_the_set_allows(name, records, unit):
    before = recipe(name)
    config, note = fit(before, {"video": records}, unit)
    batch, repeats = config.data.global_batch, config.data.repeats
    assert batch % unit == 0 and batch % repeats == 0
    assert batch <= max(records * repeats // 2, unit * repeats)
    steps, warmup = total_steps(config, records), warmup_steps(config, records)
    each = max(records * repeats // batch, 1)
    assert steps == min(before.epochs * each, max(200, 20 * each))
    assert 0 < warmup <= steps / 10
    assert f"{records} records are fewer than one batch" in note
    for field in ("config.data.global_batch", "config.steps", "config.optim.warmup_steps"):
        assert f"{field} = " in note
    # Everything else is the recipe's.
    changed = {
        "data": dataclasses.replace(config.data, global_batch=before.data.global_batch),
        "optim": dataclasses.replace(
            config.optim, warmup_steps=0, warmup_epochs=before.optim.warmup_epochs
        ),
    }
    same = dataclasses.replace(config, steps=0, epochs=before.epochs, **changed)
    assert same == before


def test_a_recipe_that_can_run_is_never_changed():
    for name, records in ((PRETRAIN, 2048), (PRETRAIN, 240_436), (FINETUNE, 512)):
        config = recipe(name)
        assert fit(config, {"video": records}, 8) == (config, "")


def test_what_the_command_line_sets_stays():
    config = recipe(PRETRAIN)
    with pytest.raises(ValueError, match=r"fewer than one batch \(config.data.global_batch = 2048"):
        fit(config, {"video": 13}, 1, {"data.global_batch"})
    found, note = fit(config, {"video": 13}, 1, {"epochs", "optim.warmup_epochs"})
    assert (found.epochs, found.steps) == (1600, 0) and found.data.global_batch == 4
    assert "config.steps" not in note and "warmup" not in note


def test_a_warm_up_that_is_longer_than_the_run():
    config = dataclasses.replace(recipe("videomae/pretrain:size=tiny"), steps=40)
    found, note = fit(config, {"video": 13}, 1, {"steps"})
    assert found.optim.warmup_steps == 4 and "config.optim.warmup_steps = 4" in note
    with pytest.raises(ValueError, match=r"config\.optim\.warmup_steps = 100.*config\.steps = 40"):
        build(config, 13, given={"steps", "optim.warmup_steps"})


@pytest.mark.parametrize("name", RECIPES)
def test_the_option_small_of_every_recipe(name):
    config = recipe(f"{name},small")
    assert config.data.global_batch == 0
    assert dataclasses.replace(config, data=recipe(name).data) == recipe(name)
    found, note = fit(config, {"video": 1000}, 1)
    assert found.data.global_batch == 64 * found.data.repeats
    assert note.startswith("1000 records: this run has config.data.global_batch = ")


@pytest.mark.parametrize("name", RECIPES)
def test_the_option_smoke_of_every_tiny_recipe(name):
    config, tiny = recipe(f"{name},smoke"), recipe(name)
    assert config.steps == 3 and config.model != tiny.model and config.data.global_batch <= 8
    assert all(
        each.views.clip.resolution == config.model.resolution for each in config.evals.values()
    )


def test_the_run_says_what_was_chosen():
    run = build(recipe(PRETRAIN), 13)
    assert run.steps == 200 and run.config.data.global_batch == 4
    assert "13 records are fewer than one batch of the recipe (2048): this run has" in run.summary
