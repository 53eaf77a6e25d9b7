"""The strict road from a plain mapping to a typed config."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from internvideo_jax import cli
from internvideo_jax.config import (
    TrainConfig,
    as_plain,
    current,
    to_typed,
    total_steps,
    warmup_steps,
)
from internvideo_jax.recipes.options import config_dict, parse_arg
from tests.recipes import shipped


def recipe(name: str, arg: str = "") -> dict:
    return shipped.module(f"videomae/{name}.py").get_config(arg).to_dict()


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        ("pretrain", "size=tiny,monitor"),
        ("pretrain", "size=small"),
        ("pretrain", "size=base"),
        ("pretrain", "size=large,recipe=internvideo1"),
        ("pretrain", "size=huge,recipe=videomae"),
        ("pretrain", "size=giant,recipe=v2"),
        ("finetune", "size=tiny"),
        ("finetune", "size=small"),
        ("finetune", "size=base"),
        ("finetune", "size=large"),
        ("finetune", "size=huge"),
        ("finetune", "size=giant"),
    ],
)
def test_recipes_survive_the_schema(name, arg):
    plain = recipe(name, arg)
    typed = to_typed(TrainConfig, plain)
    assert as_plain(typed) == as_plain(plain)
    clip = typed.data.clip
    assert (clip.frames, clip.resolution) == (typed.model.frames, typed.model.resolution)
    typed.objective.check(typed.model)


def change(plain: dict, path: str, value) -> dict:
    *parents, last = path.split(".")
    node = plain
    for name in parents:
        node = node[name]
    node[last] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.lrr", 1.0, r"unknown field config\.optim\.lrr: did you mean 'lr'\?"),
        ("model.encoder.widht", 1, r"config\.model\.encoder\.widht: did you mean 'width'"),
        ("optim.lr", "fast", r"config\.optim\.lr: expected float, found 'fast' \(str\)"),
        ("optim.accumulate", 1.5, r"config\.optim\.accumulate: expected int, found 1\.5"),
        ("optim.accumulate", True, r"expected int, found True"),
        ("objective.name", "maskd_pixels", r"unknown objective .* did you mean 'masked_pixels'"),
        ("model.name", "vit", r"unknown model 'vit'"),
        ("evals.x", {"name": "reconstructoin"}, r"unknown evaluator .*'reconstruction'"),
        ("evals.x", {"every": 1}, r"config\.evals\.x: expected a field `name`"),
        ("optim.freeze", "encoder", r"config\.optim\.freeze: expected a sequence"),
        ("data.clip", 3, r"config\.data\.clip: expected a mapping, found 3"),
    ],
)
def test_wrong_fields_are_named(path, value, message):
    plain = change(recipe("pretrain", "size=tiny"), path, value)
    with pytest.raises(ValueError, match=message):
        to_typed(TrainConfig, plain)


def test_missing_field_is_named():
    plain = recipe("pretrain", "size=tiny")
    del plain["model"]["encoder"]["heads"]
    with pytest.raises(ValueError, match=r"missing field config\.model\.encoder\.heads"):
        to_typed(TrainConfig, plain)


def test_ints_in_float_fields_may_be_overridden_by_floats():
    plain = recipe("pretrain", "size=base")
    assert isinstance(plain["epochs"], float)
    assert isinstance(plain["optim"]["warmup_epochs"], float)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("sise=base", r"unknown config option 'sise': did you mean 'size'"),
        ("monitor=maybe", r"config option monitor: expected true or false, found 'maybe'"),
        ("count=many", r"config option count: expected int, found 'many'"),
    ],
)
def test_wrong_recipe_options(arg, message):
    with pytest.raises(ValueError, match=message):
        parse_arg(arg, size="base", monitor=False, count=3)


def test_recipe_options():
    assert parse_arg("size=tiny,monitor,count=5", size="base", monitor=False, count=3) == {
        "size": "tiny",
        "monitor": True,
        "count": 5,
    }
    assert parse_arg(None, size="base") == {"size": "base"}


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="no recipe videomae/giant: .*v2/giant"):
        recipe("pretrain", "size=giant")


def with_length(**length) -> TrainConfig:
    plain = recipe("pretrain", "size=tiny")
    plain.update({"steps": 0, "epochs": 0.0, **length})
    plain["optim"].update({"warmup_steps": 0, "warmup_epochs": 2.0})
    return to_typed(TrainConfig, plain)


def test_length_of_a_run():
    # 100 records, 32 a step: 3 full batches an epoch, the rest of 4 is dropped as in the reference.
    assert total_steps(with_length(epochs=5.0), 100) == 15
    assert warmup_steps(with_length(epochs=5.0), 100) == 6
    assert total_steps(with_length(steps=7), 100) == 7
    with pytest.raises(ValueError, match="exactly one"):
        total_steps(with_length(), 100)
    with pytest.raises(ValueError, match="exactly one"):
        total_steps(with_length(steps=7, epochs=1.0), 100)
    with pytest.raises(ValueError, match="31 records, fewer than one batch"):
        total_steps(with_length(epochs=1.0), 31)


def test_an_epoch_counts_repeats_and_media_types():
    config = with_length(epochs=2.0)
    assert config.data.global_batch == 32
    repeated = dataclasses.replace(config, data=dataclasses.replace(config.data, repeats=4))
    assert total_steps(repeated, 100) == 2 * (400 // 32)
    image = dataclasses.replace(config.data.image, global_batch=64)
    mixed = dataclasses.replace(config, data=dataclasses.replace(config.data, image=image))
    assert total_steps(mixed, {"video": 100, "image": 200}) == 2 * (100 // 32 + 200 // 64)
    with pytest.raises(ValueError, match="63 records, fewer than one batch .*= 64"):
        total_steps(mixed, {"video": 100, "image": 63})


def test_config_dict_holds_every_field():
    config = config_dict(with_length(steps=3))
    assert config.data.reader.max_substitutions == 100
    assert config.checkpoint.accept_new_data is False


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.accumulate", 0, r"config\.optim\.accumulate = 0: expected at least 1"),
        ("optim.lr", float("nan"), r"config\.optim\.lr = nan: expected a finite number"),
        ("optim.lr", float("inf"), r"config\.optim\.lr = inf: expected a finite number"),
        ("optim.lr", -1e-3, r"config\.optim\.lr = -0\.001: expected at least 0"),
        ("optim.b2", 1.0, r"config\.optim\.b2 = 1: expected at least 0 and less than 1"),
        ("epochs", float("nan"), r"config\.epochs = nan"),
        ("steps", -1, r"config\.steps = -1: expected at least 0"),
        ("checkpoint.every", 0, r"config\.checkpoint\.every = 0: expected at least 1"),
        ("log.every", 0, r"config\.log\.every = 0: expected at least 1"),
        ("data.repeats", 0, r"config\.data\.repeats = 0: expected at least 1"),
        ("data.clip.frames", 0, r"config\.data\.clip\.frames = 0: expected at least 1"),
        ("data.augment.area", (0.5, float("nan")), r"config\.data\.augment\.area = nan"),
        ("mesh.data", -2, r"config\.mesh\.data = -2: expected at least -1"),
        ("model.resolution", 0, r"config\.model\.resolution = 0: expected at least 1"),
        ("model.encoder.width", -96, r"config\.model\.encoder\.width = -96: expected at least 1"),
        ("model.encoder.depth", 0, r"config\.model\.encoder\.depth = 0: expected at least 1"),
        (
            "model.dtype",
            "float8",
            r"config\.model\.dtype = 'float8': .*known: bfloat16, float16",
        ),
        ("model.dtype", "float64", r"'float64': .*\(jax computes in 32 bits at most\)"),
        ("model.dtype", "int8", r"config\.model\.dtype = 'int8': "),
        ("evals.knn.views.batch", 0, r"config\.evals\.knn\.views\.batch = 0: expected at least 1"),
        ("evals.knn.every", -2, r"config\.evals\.knn\.every = -2: expected at least -1"),
        ("evals.knn.neighbours", 0, r"config\.evals\.knn\.neighbours = 0: expected at least 1"),
    ],
)
def test_values_that_no_run_can_have_are_named(path, value, message):
    plain = change(recipe("pretrain", "size=tiny,monitor"), path, value)
    with pytest.raises(ValueError, match=message):
        to_typed(TrainConfig, plain)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("evals.knn.every", -1),
        ("mesh.data", -1),
        ("seed", -3),
        ("optim.clip_norm", 0.0),
        ("optim.lr", 1e30),
        ("model.dtype", "float16"),
        ("data.reader.threads", 0),
    ],
)
def test_values_at_the_edge_are_taken(path, value):
    to_typed(TrainConfig, change(recipe("pretrain", "size=tiny,monitor"), path, value))


def test_a_teacher_of_another_type_is_named_by_its_path():
    from data_pipelines.recipe_files import load as load_recipe

    plain = change(load_recipe("umt/pretrain:size=tiny"), "objective.clip_teacher.dtype", "int8")
    with pytest.raises(ValueError, match=r"config\.objective\.clip_teacher\.dtype = 'int8'"):
        to_typed(TrainConfig, plain)


def test_a_length_without_a_step_is_an_error():
    with pytest.raises(ValueError, match=r"config\.epochs = 0\.1 of 3 steps is no step at all"):
        total_steps(with_length(epochs=0.1), 100)


def test_a_config_of_an_earlier_version_is_read_under_the_names_of_now():
    now = as_plain(to_typed(TrainConfig, recipe("pretrain", "size=tiny,monitor")))
    before = copy.deepcopy(now)
    data, shown = before["data"], before["evals"]["reconstruction"]
    for fields, new, old in (
        (before["model"], "resolution", "size"),
        (before["objective"], "mask_ratio", "ratio"),
        (data, "fixed_views", "views"),
        (data["clip"], "resolution", "size"),
        (data["image"], "resolution", "size"),
        (shown, "mask_ratio", "ratio"),
        (shown["views"], "clips", "segments"),
        (shown["views"]["clip"], "resolution", "size"),
    ):
        fields[old] = fields.pop(new)
    before["evals"]["another"] = {"name": "not known here", "size": 3}
    found = current(TrainConfig, before)
    assert found["evals"].pop("another")["size"] == 3
    assert found == now and found["data"]["augment"]["ratio"]  # of width and height: it stays


def test_a_flag_of_another_program_is_told_its_name_here():
    assert cli._fields_called("epochs") == ["--config.epochs="]
    assert cli._fields_called("data.train") == ["--config.data.train="]
    assert "--config.optim.lr=" in cli._fields_called("lr") and not cli._fields_called("gpus")
