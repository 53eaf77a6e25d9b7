"""ViCLIP and CLIP files: recognition, the way back, starting from them, averaging."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.checkpoint import initial
from internvideo_jax.families.viclip.model import FRAMES, IMAGE, TEXT, ViCLIPConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files
from internvideo_jax.weights.__main__ import main
from internvideo_jax.weights.average import average
from tests.conftest import ROOT
from tests.internvideo_jax.weights.made import comes_back

FULL = ROOT / "tests/golden/video_language/viclip_full/weights.safetensors"
MODEL = ViCLIPConfig(
    encoder=tower(48, 2, 4),
    text=tower(40, 2, 4),
    embedding=32,
    frames=4,
    resolution=32,
    patch=8,
    context=12,
    vocab=120,
)


def clip_file(context: int = 20) -> dict[str, np.ndarray]:
    """A CLIP file of the same shapes, whose weights are ViCLIP's plus one."""
    tensors = {}
    for name, value in load_file(FULL).items():
        short = name.removeprefix("text_encoder.").replace("vision_encoder.", "visual.")
        tensors[short] = value + np.float32(1.0)
    tensors.pop("visual.temporal_positional_embedding")
    tensors.pop("temp")
    tensors["visual.conv1.weight"] = np.ascontiguousarray(tensors["visual.conv1.weight"][:, :, 0])
    rows = np.random.default_rng(0).normal(size=(context, 40)).astype(np.float32)
    tensors["positional_embedding"] = rows
    tensors["logit_scale"] = np.array(4.6, np.float32)
    tensors["input_resolution"] = np.array(32, np.int64)
    return tensors


@pytest.fixture
def clip_path(tmp_path):
    save_file(clip_file(), tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


def blank(model: ViCLIPConfig):
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), model.model().shapes())


def start(path, model: ViCLIPConfig):
    params, report = initial.initialise(str(path), blank(model), model)
    return {name: np.asarray(x) for name, x in flatten_paths(params).items()}, report


@pytest.mark.parametrize("half", ["", "vision_encoder.", "text_encoder."])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_import_export_returns_the_file(half, dtype, tmp_path):
    original = {k: v.astype(dtype) for k, v in load_file(FULL).items() if k.startswith(half)}
    save_file(original, tmp_path / "in.safetensors")
    weights = files.load(tmp_path / "in.safetensors")
    assert weights.kind == "viclip"
    assert dict(weights.geometry) == ({} if half == "text_encoder." else {"patch": 8})
    comes_back(weights, original, tmp_path)


@pytest.mark.parametrize("wrapper", ["model", "module"])
@pytest.mark.torch
def test_a_training_file_with_its_wrapping(wrapper, tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs torch")
    state = {name: torch.from_numpy(value) for name, value in load_file(FULL).items()}
    torch.save({wrapper: state, "epoch": 3, "scaler": {}}, tmp_path / "ckpt.pth")
    weights = files.load(tmp_path / "ckpt.pth")
    assert weights.kind == "viclip" and weights.params["temperature"].shape == ()


def test_clip_files_return_whole(clip_path, tmp_path):
    weights = files.load(clip_path)
    assert weights.kind == "clip" and weights.coverage is not None
    assert set(weights.coverage.ignored) == {"logit_scale", "input_resolution"}
    files.save_torch(tmp_path / "back.safetensors", weights)
    back, original = load_file(tmp_path / "back.safetensors"), load_file(clip_path)
    assert original.keys() - back.keys() == {"logit_scale", "input_resolution"}
    assert all(original[name].tobytes() == value.tobytes() for name, value in back.items())


def test_a_model_takes_all_of_its_own_file():
    flat, report = start(FULL, MODEL)
    assert report.fresh == report.resized == report.skipped == ()
    assert set(report.loaded) == set(flat)


def test_start_from_clip(clip_path):
    flat, report = start(clip_path, MODEL)
    assert set(report.fresh) == {FRAMES, "temperature"}
    assert report.resized == (TEXT,)
    rows = load_file(clip_path)["positional_embedding"]
    np.testing.assert_array_equal(flat[TEXT], rows[:12])
    longer, _ = start(clip_path, dataclasses.replace(MODEL, context=24))
    np.testing.assert_array_equal(longer[TEXT], np.pad(rows, [(0, 4), (0, 0)]))
    half = {name: value.astype(np.float16) for name, value in clip_file().items()}
    save_file(half, clip_path)  # as OpenAI's are
    flat, _ = start(clip_path, MODEL)
    assert flat[IMAGE].dtype == np.float32


@pytest.mark.parametrize("frames", [2, 8])
def test_another_number_of_frames_and_pixels(frames):
    flat, report = start(FULL, dataclasses.replace(MODEL, frames=frames, resolution=48))
    assert set(report.resized) == {FRAMES, IMAGE} and report.fresh == ()
    old = load_file(FULL)["vision_encoder.temporal_positional_embedding"][0]
    if frames == 2:
        np.testing.assert_array_equal(flat[FRAMES], old[:2])
    else:
        np.testing.assert_allclose(flat[FRAMES][[0, 7]], old[[0, 3]], rtol=1e-6)
        between = 0.75 * old[:-1] + 0.25 * old[1:]
        np.testing.assert_allclose(flat[FRAMES][1:-1:2], between, rtol=1e-5, atol=1e-7)
    table = load_file(FULL)["vision_encoder.positional_embedding"]
    assert flat[IMAGE].shape == (37, 48)
    np.testing.assert_array_equal(flat[IMAGE][0], table[0])


def test_a_file_of_another_patch_size_is_refused():
    with pytest.raises(ValueError, match=r"patch_embed/kernel: found \(192, 48\), expected \(768"):
        start(FULL, dataclasses.replace(MODEL, patch=16))


def test_average_with_clip(clip_path, tmp_path, capsys):
    out = tmp_path / "mean.safetensors"
    command = ["average", str(FULL), str(clip_path), "--out", str(out), "--weight", "0.75"]
    assert main(command) == 0
    assert "first model's own: 2" in capsys.readouterr().out
    mean, one = files.load(out), files.load(FULL).params
    assert mean.kind == "viclip" and mean.params.keys() == one.keys()
    for path, value in mean.params.items():
        if path in (FRAMES, "temperature"):
            np.testing.assert_array_equal(value, one[path])
        elif path == TEXT:
            rows = clip_file()["positional_embedding"][:12]
            np.testing.assert_allclose(value, 0.75 * one[path] + 0.25 * rows, atol=1e-6)
        else:
            np.testing.assert_allclose(value, one[path] + 0.25, atol=1e-6)
    files.save_torch(tmp_path / "torch.safetensors", mean)
    assert load_file(tmp_path / "torch.safetensors").keys() == load_file(FULL).keys()


def test_average_of_two_models_keeps_the_frames_of_the_first():
    first = files.load(FULL)
    other = {path: value + np.float32(1.0) for path, value in first.params.items()}
    mean = average(first, dataclasses.replace(first, params=other), 0.5)
    assert mean.kept == (FRAMES,) and mean.unused == ()
    np.testing.assert_array_equal(mean.weights.params[FRAMES], first.params[FRAMES])
    np.testing.assert_allclose(mean.weights.params["temperature"], 0.52)
    same = average(first, dataclasses.replace(first, params=other), 1.0).weights.params
    assert all(same[path].tobytes() == value.tobytes() for path, value in first.params.items())


@pytest.mark.parametrize(
    ("change", "weight", "message"),
    [
        ({}, 1.5, "no share of the first model"),
        ({"kind": "uniformerv2"}, 0.5, "first model is viclip, the second uniformerv2"),
        ({"geometry": {"patch": 16}}, 0.5, "'patch': 8.*'patch': 16"),
        ({"params": {IMAGE: np.zeros((5, 48))}}, 0.5, r"table: \(17, 48\) and \(5, 48\)"),
        ({"params": {"other": np.zeros(3)}}, 0.5, "no name is in both"),
    ],
)
def test_weights_that_have_no_mean(change, weight, message):
    first = files.load(FULL)
    with pytest.raises(ValueError, match=message):
        average(first, dataclasses.replace(first, **change), weight)


def test_a_refused_average_is_one_line(clip_path, tmp_path, capsys):
    out = tmp_path / "mean.safetensors"
    command = ["average", str(clip_path), str(FULL), "--out", str(out)]
    assert main(command) == 2
    assert "first model is clip, the second viclip" in capsys.readouterr().err
    assert not out.exists()
