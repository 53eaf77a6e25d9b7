"""The layout of Hugging Face transformers: the way back, refusals, and transformers itself."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.config import as_plain
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.types import flatten_paths, unflatten_paths
from internvideo_jax.weights import files, huggingface
from internvideo_jax.weights.__main__ import main

SMALL = {"frames": 4, "resolution": 24, "patch": 8, "dtype": "float32"}


def classifier(**changes) -> VideoMAEClassifierConfig:
    return VideoMAEClassifierConfig(encoder=tower(32, 2, 4), **{"classes": 5, **SMALL, **changes})


def pretrain(**changes) -> PretrainConfig:
    # Neither heads nor hidden size of the decoder follow from those of the encoder.
    decoder = tower(24, 3, 2, 3.0)
    return PretrainConfig(encoder=tower(32, 2, 4), decoder=decoder, **{**SMALL, **changes})


def weights(config, seed: int = 0) -> dict[str, np.ndarray]:
    """Every parameter random, biases and norms too, so that a lost one shows."""
    rng = np.random.default_rng(seed)
    shapes = flatten_paths(config.model().shapes())
    return {
        path: (0.4 * rng.standard_normal(leaf.shape) + path.endswith("scale")).astype(np.float32)
        for path, leaf in shapes.items()
    }


CONFIGS = {
    "classifier": classifier(),
    "first-token": classifier(pooling="first_token"),
    "no-bias": classifier(qkv_bias=False),
    "pretrain": pretrain(),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_way_back_returns_every_bit(config, tmp_path):
    params = weights(config)
    count = huggingface.save(tmp_path, params, config)
    assert count == len(load_file(tmp_path / "model.safetensors"))
    back = files.load(tmp_path / "model.safetensors")
    assert (back.kind, back.layout, dict(back.geometry)) == (
        config.name,
        "huggingface",
        {"tubelet": 2, "patch": 8},
    )
    assert back.params.keys() == params.keys()
    for path, value in params.items():
        assert back.params[path].tobytes() == np.ascontiguousarray(value).tobytes(), path


def test_the_newer_spelling_of_the_biases_is_read_as_well(tmp_path):
    params = weights(classifier())
    huggingface.save(tmp_path, params, classifier())
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    newer = {
        name.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): value
        for name, value in tensors.items()
    }
    assert newer.keys() != tensors.keys()
    save_file(newer, path)
    back = files.load(path).params
    assert all(back[name].tobytes() == value.tobytes() for name, value in params.items())
    save_file({**tensors, **newer}, path)
    with pytest.raises(ValueError, match="two spellings of one parameter"):
        files.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cosine": True}, "cosine attention"),
        ({"layer_scale": 0.1}, "LayerScale"),
        ({"pos_table": "separable"}, "separable position table"),
        ({"pos_table": "learnable"}, "learnable position table"),
        ({"pos_table": "resized"}, "resized position table"),
    ],
)
def test_what_the_layout_cannot_say_is_refused(changes, message, tmp_path):
    config = classifier(**changes)
    with pytest.raises(ValueError, match=f"{message}.*without --layout"):
        huggingface.save(tmp_path / "out", weights(config), config)
    assert not (tmp_path / "out").exists()


def test_a_table_resized_to_its_own_grid_is_the_flat_one():
    same = classifier(pos_table="resized", pos_frames=4, pos_size=24)
    assert huggingface.config_json(same)["num_frames"] == 4


def test_class_names_must_be_as_many_as_the_head_has(tmp_path):
    content = huggingface.config_json(classifier(), list("abcde"))
    assert content["id2label"]["4"] == "e" and content["label2id"]["a"] == 0
    with pytest.raises(ValueError, match="2 class names for a head of 5 classes"):
        huggingface.config_json(classifier(), list("ab"))


def test_a_missing_part_of_a_fused_matrix_is_named(tmp_path):
    huggingface.save(tmp_path, weights(classifier()), classifier())
    path = tmp_path / "model.safetensors"
    lost = {k: v for k, v in load_file(path).items() if ".key.weight" not in k}
    save_file(lost, path)
    with pytest.raises(ValueError, match=r"key\.weight is missing; encoder/blocks/attn/qkv"):
        files.load(path)


def test_command_line_from_a_file(tmp_path, capsys):
    config, ours = classifier(), tmp_path / "ours.safetensors"
    params = weights(config)
    files.save_ours(ours, files.Weights(config.name, params, {"tubelet": 2, "patch": 8}))
    export = ["export", str(ours), "--layout=huggingface", "--out", str(tmp_path / "hf")]
    assert main(export) == 2
    assert "does not tell the number of heads" in capsys.readouterr().err
    assert main([*export, "--heads=4", "--frames=4", "--resolution=24"]) == 0
    assert "taken for granted" in capsys.readouterr().out
    written = json.loads((tmp_path / "hf/config.json").read_text())
    assert written == json.loads(json.dumps(huggingface.config_json(config)))
    assert main(["import", str(tmp_path / "hf"), "--out", str(tmp_path / "again.safetensors")]) == 0
    assert "names of huggingface" in capsys.readouterr().out
    again = load_file(tmp_path / "again.safetensors")
    assert all(again[path].tobytes() == value.tobytes() for path, value in params.items())


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError):  # one that does not fit torch breaks transformers
        sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]
    return pytest.importorskip("transformers", reason="compares with transformers")


def video(config) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.random((2, config.frames, config.resolution, config.resolution, 3)).astype(
        np.float32
    )


def pixels(config, clip: np.ndarray):
    import torch  # pyright: ignore[reportMissingImports]

    normal = (clip - np.asarray(config.pixel_mean)) / np.asarray(config.pixel_std)
    return torch.from_numpy(normal.transpose(0, 1, 4, 2, 3).astype(np.float32))


def with_their_epsilon(features: np.ndarray, params, prefix: str) -> np.ndarray:
    """The norm that transformers builds with an epsilon of 1e-5 whatever the config says."""
    mean, var = features.mean(-1, keepdims=True), features.var(-1, keepdims=True)
    normal = (features - mean) / np.sqrt(var + 1e-5)
    return normal * params[f"{prefix}/scale"] + params[f"{prefix}/bias"]


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "first-token", "no-bias"])
def test_transformers_gives_our_logits(name, transformers, tmp_path):
    import torch  # pyright: ignore[reportMissingImports]

    config = CONFIGS[name]
    params = weights(config)
    huggingface.save(tmp_path, params, config)
    theirs, report = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    clip = video(config)
    with torch.no_grad():
        found = theirs.eval()(pixels(config, clip)).logits.numpy()
    model, tree = config.model(), unflatten_paths(params)
    ours = np.asarray(model.apply(tree, clip))
    np.testing.assert_allclose(found, ours, rtol=1e-4, atol=1e-4)
    if config.pooling == "mean":  # the rest of the difference is their epsilon
        pooled = np.asarray(model.apply(tree, clip, method="features")).mean(axis=1)
        normal = with_their_epsilon(pooled, params, "fc_norm")
        ours = normal @ params["head/kernel"] + params["head/bias"]
    np.testing.assert_allclose(found, ours, rtol=2e-6, atol=5e-6)
    # A lost bias would show: without them the logits are others.
    if config.qkv_bias:
        for path in ("encoder/blocks/attn/qkv/q_bias", "encoder/blocks/attn/qkv/v_bias"):
            without = unflatten_paths({**params, path: np.zeros_like(params[path])})
            assert np.abs(np.asarray(model.apply(without, clip)) - found).max() > 1e-2


@pytest.mark.torch
@pytest.mark.slow
def test_transformers_gives_our_reconstruction(transformers, tmp_path):
    import torch  # pyright: ignore[reportMissingImports]

    config = pretrain()
    params = weights(config)
    huggingface.save(tmp_path, params, config)
    theirs, report = transformers.VideoMAEForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    rng = np.random.default_rng(2)
    order = rng.permuted(np.tile(np.arange(config.tokens), (2, 1)), axis=1)
    visible, hidden = np.sort(order[:, :5]), np.sort(order[:, 5:])
    mask = np.ones(order.shape, bool)
    np.put_along_axis(mask, visible, False, axis=1)
    clip = video(config)
    with torch.no_grad():
        found = theirs.eval()(pixels(config, clip), torch.from_numpy(mask)).logits.numpy()
    tree = unflatten_paths(params)
    ours = config.model().apply(tree, clip, visible.astype(np.int32), hidden.astype(np.int32))
    np.testing.assert_allclose(found, np.asarray(ours), rtol=1e-4, atol=1e-4)


@pytest.mark.torch
@pytest.mark.slow
def test_what_transformers_saves_is_read(transformers, tmp_path):
    config = dataclasses.replace(classifier(), classes=3)
    params = weights(config)
    huggingface.save(tmp_path / "ours", params, config)
    model = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    back = files.load(tmp_path / "theirs/model.safetensors").params
    assert all(back[path].tobytes() == value.tobytes() for path, value in params.items())
    assert jax.tree.structure(back) == jax.tree.structure(params)


@pytest.fixture
def a_run(tmp_path):
    """A checkpoint of an untrained model, as the training loop writes it."""

    def save(config):
        params = weights(config)
        state = {"params": unflatten_paths(params), "ema": None}
        folder = tmp_path / "run/checkpoints/1"
        with ocp.PyTreeCheckpointer() as writer:
            writer.save(folder / "state", state)
        (folder / "meta").mkdir()
        meta = {"config": {"model": as_plain(config)}}
        (folder / "meta/metadata").write_text(json.dumps(meta))
        return tmp_path / "run", params

    return save


def test_command_line_from_a_run(a_run, tmp_path, capsys):
    config = classifier(drop_path=0.1)
    run, params = a_run(config)
    export = ["export", str(run), "--layout=huggingface", "--out", str(tmp_path / "hf")]
    assert main([*export, "--heads=4"]) == 2
    assert "--heads is for files; a run knows its own" in capsys.readouterr().err
    assert main(export) == 0
    written = json.loads((tmp_path / "hf/config.json").read_text())
    assert written["num_attention_heads"] == 4 and written["num_frames"] == 4
    back = files.load(tmp_path / "hf/model.safetensors").params
    assert all(back[path].tobytes() == value.tobytes() for path, value in params.items())


def test_a_run_with_another_table_is_refused(a_run, tmp_path, capsys):
    run, _ = a_run(classifier(pos_table="separable"))
    assert main(["export", str(run), "--layout=huggingface", "--out", str(tmp_path / "hf")]) == 2
    assert "no separable position table" in capsys.readouterr().err
