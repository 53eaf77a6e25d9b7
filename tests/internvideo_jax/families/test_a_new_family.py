"""What a family costs: a folder (tests/toy_family) and lines in the registry. Text, no pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from internvideo_jax import registry
from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files, zoo
from internvideo_jax.weights.__main__ import main
from internvideo_jax.weights.family import recognise
from tests.conftest import ROOT
from tests.toy_family.model import ToyConfig

VIDEOMAE = ROOT / "tests/golden/videomae/finetune_v2_mean/weights.safetensors"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.FAMILIES, "toy", "tests.toy_family.family:FAMILY")
    monkeypatch.setitem(registry.MODELS, "toy_text", "tests.toy_family.model:ToyConfig")


@pytest.fixture(scope="module")
def trained():
    """Parameters after some steps that fill in a hidden id, and the loss before and after."""
    config = ToyConfig.of_size("tiny")
    model = config.model()
    whole = jnp.asarray(np.random.default_rng(0).integers(0, 39, (4, 8)))
    hidden = whole.at[:, 3].set(config.vocab - 1)

    @jax.jit
    def loss(params):
        picked = jax.nn.log_softmax(model.apply(params, hidden)[:, 3])
        return -jnp.take_along_axis(picked, whole[:, 3, None], axis=1).mean()

    params = first = model.init(jax.random.key(0))
    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.1 * g, p, jax.grad(loss)(p)))
    for _ in range(10):
        params = step(params)
    return config, params, float(loss(first)), float(loss(params))


def test_it_learns_hidden_tokens(trained):
    _, _, before, after = trained
    assert after < 0.5 * before


def test_it_is_exported_recognised_and_read_back(trained, tmp_path, capsys):
    config, params, _, _ = trained
    flat = {path: np.asarray(value) for path, value in flatten_paths(params).items()}
    ours, torch = tmp_path / "ours.safetensors", tmp_path / "toy_tiny.safetensors"
    files.save_ours(ours, files.Weights(config.name, flat, {}))
    assert main(["export", str(ours), "--out", str(torch)]) == 0
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
    assert jax.tree.structure(start) == jax.tree.structure(params)


def test_no_other_family_has_to_know_it():
    found = recognise(load_file(VIDEOMAE))
    assert found is not None and found.family.title == "VideoMAE"
    assert zoo.find("toy_tiny.pth").source == "toy"
    assert main(["list", "toy"]) == 0
