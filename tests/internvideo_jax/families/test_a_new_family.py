"""What a family costs: a folder (tests/toy_family) and lines in the registry. Text, no pixels."""

from __future__ import annotations

import json

import jax
import pytest
from safetensors.numpy import load_file

from internvideo_jax import registry
from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.checkpoint.reading import step_of
from internvideo_jax.config import TrainConfig, as_plain, to_typed
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.recipes.smoke import smoke
from internvideo_jax.train import train
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files, zoo
from internvideo_jax.weights.__main__ import main
from internvideo_jax.weights.family import recognise
from tests.conftest import ROOT
from tests.data_pipelines.sets import write_set
from tests.toy_family.model import ToyConfig

VIDEOMAE = ROOT / "tests/golden/videomae/finetune_v2_mean/weights.safetensors"


WORDS = [f"w{i}" for i in range(8)]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    _register(monkeypatch)


def _register(monkeypatch) -> None:
    """The lines that the registry would have."""
    for table, name, place in (
        (registry.FAMILIES, "toy", "family:FAMILY"),
        (registry.MODELS, "toy_text", "model:ToyConfig"),
        (registry.OBJECTIVES, "masked_ids", "objective:MaskedIds"),
        (registry.EVALUATORS, "hidden_ids", "evaluator:HiddenIds"),
    ):
        monkeypatch.setitem(table, name, f"tests.toy_family.{place}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on captions whose words follow from the first one, and its workdir."""
    folder = tmp_path_factory.mktemp("toy")
    captions = [(" ".join(WORDS[(i + k) % 8] for k in range(6)),) for i in range(8)]
    write_set(folder / "set", 24, captions=captions, frames=1)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS, "[MASK]"]))
    views = {"batch": 8, "clip": {"frames": 1, "stride": 1, "resolution": 16, "sampling": "dense"}}
    plain = {
        "model": as_plain(ToyConfig.of_size("tiny", vocab=13)),
        "objective": {"name": "masked_ids"},
        "data": {
            "mixture": {"captions": {"directory": f"{folder}/set", "media": "features"}},
            "global_batch": 8,
            "text": "first",
            "tokenizer": f"bert:{folder}/vocab.txt",
            "text_length": 8,
        },
        "optim": {"lr": 0.01, "lr_batch": 0, "warmup_steps": 10},
        "evals": {
            "filled": {"name": "hidden_ids", "data": f"{folder}/set", "split": "train",
                       "views": views, "place": 3},
        },
        "steps": 200,
        "log": {"every": 100, "report": False},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        _register(patch)
        assert train(to_typed(TrainConfig, plain), folder / "run") == 0
    return folder / "run"


def test_it_trains_without_pixels_and_fills_in_what_is_hidden(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    (found,) = [row["eval/filled/top1"] for row in rows if "eval/filled/top1" in row]
    assert found > 0.9 > 2 / 8  # of eight words


def test_the_run_is_evaluated_offline(run):
    config = to_typed(TrainConfig, json.loads((run / "run.json").read_text())["config"])
    model = config.model.model()
    params, _ = initialise(str(run), model.init(jax.random.key(1)), config.model)
    mesh = make_mesh(config.mesh)
    context = EvalContext(model, mesh, config.data, progress=False, params=params)
    stored = json.loads((run / "results/filled.json").read_text())
    assert config.evals["filled"].run(context).metrics == stored["metrics"]


def test_it_is_exported_recognised_and_read_back(run, tmp_path, capsys):
    flat = step_of(run).parameters()
    config, torch = ToyConfig.of_size("tiny", vocab=13), tmp_path / "toy_tiny.safetensors"
    assert main(["export", str(run), "--out", str(torch)]) == 0
    assert "bert.layer.1.qkv.weight" in load_file(torch)
    assert main(["inspect", str(torch)]) == 0
    said = capsys.readouterr().out
    assert "toy, masked tokens" in said and "size tiny" in said and "toy/toy_tiny" in said
    assert f"--config=configs/toy.py:size=tiny --config.init_from={torch}" in said
    back = files.load(torch)
    assert back.kind == "toy_text" and back.params.keys() == flat.keys()
    assert all(back.params[path].tobytes() == value.tobytes() for path, value in flat.items())
    start, report = initialise(str(torch), config.model().shapes(), config)
    assert not report.fresh and not report.skipped and not report.resized
    assert flatten_paths(start).keys() == flat.keys()


def test_no_other_family_has_to_know_it():
    found = recognise(load_file(VIDEOMAE))
    assert found is not None and found.family.title == "VideoMAE"
    assert zoo.find("toy_tiny.pth").source == "toy"
    assert main(["list", "toy"]) == 0


def test_its_recipe_in_small_has_no_pixels_either(run):
    config = to_typed(TrainConfig, json.loads((run / "run.json").read_text())["config"])
    small = smoke(config)
    assert (small.steps, small.data.global_batch, small.data.clip) == (3, 4, config.data.clip)
    assert small.evals["filled"].views.clip == config.evals["filled"].views.clip
