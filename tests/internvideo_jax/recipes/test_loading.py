"""The config behind a command line: recipes from anywhere, runs, and fields that do not exist."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from setuptools import find_namespace_packages

from data_pipelines import recipe_files
from internvideo_jax import cli
from internvideo_jax.checkpoint.reading import META, STATE_FILES
from internvideo_jax.config import TrainConfig, as_plain, to_typed
from internvideo_jax.recipes import loading
from tests.conftest import ROOT


def load(recipe: str = "", **asked) -> dict:
    request = {"recipe": recipe, "checkpoint": "", "evals": [], "fields": [], **asked}
    return loading.get_config(json.dumps(request)).to_dict()


TINY = "videomae/finetune:size=tiny"


@pytest.mark.parametrize(
    "name",
    ["configs/videomae/pretrain.py", "videomae/pretrain.py", "videomae/pretrain", "probe"],
)
def test_recipes_are_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = recipe_files.find(name)
    short = name.removeprefix("configs/").removesuffix(".py")
    assert found.read_bytes() == (ROOT / f"configs/{short}.py").read_bytes()
    assert load(f"{name}:size=tiny")["steps"] > 0


def test_a_file_of_ones_own_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs/videomae/pretrain.py"
    own.parent.mkdir(parents=True)
    shutil.copy(ROOT / "configs/videomae/pretrain.py", own)
    assert recipe_files.find("configs/videomae/pretrain.py") == own


def test_recipes_are_part_of_the_package():
    packages = find_namespace_packages(str(ROOT), include=["internvideo_jax*"])
    folders = {path.parent.relative_to(ROOT / "configs") for path in ROOT.glob("configs/**/*.py")}
    for folder in folders:
        assert ".".join(("internvideo_jax.configs", *folder.parts)) in packages


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("configs/videomae/pretrian.py", r"did you mean 'configs/videomae/pretrain.py'\?.* \(in /"),
        ("/abs/videomae/pretrain.py", "no such file or recipe"),
        ("videomae/pretrain:size=tny", "did you mean 'videomae/tiny'"),
        ("videomae/finetune:size=tny", "did you mean 'tiny'"),
        ("viclip/pretrain:size=tny", "did you mean 'tiny'"),
        ("umt/pretrain:size=tny", "did you mean 'tiny'"),
        ("videomae/pretrain:smal", r"unknown config option 'smal': did you mean 'small'\?"),
        ("videomae/pretrain:smoke,small", "smoke and small exclude each other"),
    ],
)
def test_recipes_and_options_that_do_not_exist(recipe, message):
    with pytest.raises(ValueError, match=message):
        load(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no function get_config"),
        ("def get_config(arg):\n    return 3\n", "gives int, expected a mapping"),
        ("import nowhere\n", "is broken: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config(arg):\n    return {}['x']\n", "is broken: KeyError: 'x'"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("mesh.model", "unknown field config.mesh.model: known: data, frozen, fsdp"),
        ("optim.lrr", r"unknown field config.optim.lrr: did you mean 'lr'\?"),
        ("optm.lr", r"unknown field config.optm: did you mean 'optim'\?"),
        ("lr", r"unknown field config.lr: did you mean config.optim.lr\?"),
        ("evals.test.views.btach", r"config.evals.test.views.btach: did you mean 'batch'\?"),
        ("evals.tets.every", r"unknown field config.evals.tets: did you mean 'test'\?"),
        ("steps.x", "unknown field config.steps.x: config.steps is a single value"),
        ("data.clip.size", "unknown field config.data.clip.size: it is called resolution now"),
        ("model.size", "unknown field config.model.size: it is called resolution now"),
        ("data.views", "unknown field config.data.views: it is called fixed_views now"),
        ("evals.test.views.segments", "views.segments: it is called clips now"),
    ],
)
def test_fields_that_do_not_exist_are_named_in_full(field, message):
    with pytest.raises(ValueError, match=message):
        load(TINY, fields=[field])


def test_an_evaluator_is_added_by_its_name_on_the_model_s_clips():
    config = to_typed(TrainConfig, load("viclip/pretrain:size=tiny", evals=["zero_shot", "x"]))
    assert list(config.evals) == ["retrieval", "zero_shot"]
    views = config.evals["zero_shot"].views
    assert (views.clip.frames, views.clip.resolution, views.batch) == (8, 48, 32)
    assert (views.clip.sampling, views.crop_rule) == ("uniform", "squash")
    config = to_typed(TrainConfig, load(TINY, evals=["knn"], fields=["evals.knn.neighbours"]))
    assert config.evals["knn"].views == config.evals["test"].views


def run_of(folder, config) -> str:
    step = folder / "checkpoints/7"
    for name in (META, *(f"state/{each}" for each in STATE_FILES)):
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).touch()
    (step / META).write_text(json.dumps({"config": config}))
    return str(folder)


def test_a_run_tells_its_config_but_not_its_machine(tmp_path):
    plain = as_plain(to_typed(TrainConfig, load(TINY)))
    plain["mesh"] = {**plain["mesh"], "fsdp": 8}
    plain["optim"] = {**plain["optim"], "lr": 0.5}
    found = load(checkpoint=run_of(tmp_path, plain))
    assert found["optim"]["lr"] == 0.5 and found["mesh"]["fsdp"] == 1
    del plain["data"]["clip"]["stride"], plain["profile"]  # of an older version: the defaults
    assert load(checkpoint=run_of(tmp_path / "older", plain))["data"]["clip"]["stride"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "cannot be used: unknown field config.colour: .*give the recipe as --conf"),
        ({"steps": "many"}, "cannot be used: config.steps: expected int"),
        ({"model": {"name": "later"}}, "cannot be used: unknown model 'later'"),
    ],
)
def test_a_run_of_another_version_is_one_message(tmp_path, change, message):
    plain = as_plain(to_typed(TrainConfig, load(TINY)))
    with pytest.raises(OSError, match=message):  # which `cli` raises where the config is read
        load(checkpoint=run_of(tmp_path, {**plain, **change}))


def test_no_run_and_files_without_a_config(tmp_path):
    with pytest.raises(OSError, match="no checkpoint here"):
        load(checkpoint=str(tmp_path))
    (tmp_path / "a.pth").write_bytes(b"no weights")
    with pytest.raises(OSError, match="is a weight file.* give the --config it was trained with$"):
        load(checkpoint=str(tmp_path / "a.pth"))
    # What a published ViT-S of VideoMAE has, as far as it is looked at.
    width, hidden = 384, 1536
    tensors = {"patch_embed.proj.weight": (width, 3, 2, 16, 16), "patch_embed.proj.bias": (width,)}
    for i in range(12):
        tensors |= {
            f"blocks.{i}.{name}": shape
            for name, shape in {
                "norm1.weight": (width,),
                "norm1.bias": (width,),
                "attn.q_bias": (width,),
                "attn.v_bias": (width,),
                "attn.qkv.weight": (3 * width, width),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "norm2.weight": (width,),
                "norm2.bias": (width,),
                "mlp.fc1.weight": (hidden, width),
                "mlp.fc1.bias": (hidden,),
                "mlp.fc2.weight": (width, hidden),
                "mlp.fc2.bias": (width,),
            }.items()
        }
    tensors |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,)}
    tensors |= {"head.weight": (400, width), "head.bias": (400,)}
    file = tmp_path / "vits.safetensors"
    save_file({name: np.zeros(shape, np.float16) for name, shape in tensors.items()}, file)
    with pytest.raises(OSError, match="such as --config=configs/videomae/finetune.py:recipe="):
        load(checkpoint=str(file))


def test_the_command_line_for_the_flag_library():
    def request(*words: str, **options) -> tuple[dict, list[str]]:
        name, config, *rest = cli.requested(["prog", *words], **options)
        assert name == "prog" and config.startswith(f"--config={loading.__file__}:")
        return json.loads(config.partition(":")[2]), rest

    override = "--config.optim.lr=1"
    asked, rest = request(override, "word", "--config", "a.py:x=1", "--noconfig.scan")
    assert asked["recipe"] == "a.py:x=1" and asked["fields"] == ["optim.lr", "scan"]
    assert rest == [override, "word", "--noconfig.scan"]
    asked, _ = request("--checkpoint=run", stored=True)
    assert (asked["recipe"], asked["checkpoint"]) == ("", "run")
    asked, _ = request("--config=a", "--only=knn,zero_shot", "--checkpoint=r", evaluators=True)
    assert asked["evals"] == ["knn", "zero_shot"]
    assert cli.requested(["prog", "--checkpoint=run"]) == ["prog", "--checkpoint=run"]
