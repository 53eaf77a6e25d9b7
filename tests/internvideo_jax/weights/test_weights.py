"""Weight files: wrappers, recognition, coverage, the way back, errors."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.families.videomae import weights as videomae
from internvideo_jax.families.videomae.family import FAMILY
from internvideo_jax.weights import files, torch_files
from internvideo_jax.weights.__main__ import main
from internvideo_jax.weights.family import families
from internvideo_jax.weights.rules import SAME, Rule, to_ours, to_torch
from tests.conftest import ROOT

GOLDEN = ROOT / "tests/golden/videomae"
PRETRAIN = GOLDEN / "pretrain_v2_dual_cosattn_ls/weights.safetensors"
FINETUNE = GOLDEN / "finetune_v2_first_token/weights.safetensors"


@pytest.mark.parametrize("path", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_import_export_returns_the_file(path, tmp_path):
    weights = files.load(path)
    files.save_ours(tmp_path / "ours.safetensors", weights)
    again = files.load(tmp_path / "ours.safetensors")
    assert again.kind == weights.kind and again.geometry == weights.geometry
    files.save_torch(tmp_path / "back.safetensors", again)
    original, back = load_file(path), load_file(tmp_path / "back.safetensors")
    assert original.keys() == back.keys()
    for name in original:
        assert original[name].tobytes() == back[name].tobytes(), name


def test_half_precision_files_keep_their_bits(tmp_path):
    half = {name: value.astype(np.float16) for name, value in load_file(FINETUNE).items()}
    save_file(half, tmp_path / "half.safetensors")
    files.save_ours(tmp_path / "ours.safetensors", files.load(tmp_path / "half.safetensors"))
    files.save_torch(tmp_path / "back.safetensors", files.load(tmp_path / "ours.safetensors"))
    back = load_file(tmp_path / "back.safetensors")
    assert all(back[name].tobytes() == half[name].tobytes() for name in half)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_shared_prefixes_are_stripped(prefix):
    original = load_file(FINETUNE)
    assert files.strip_prefixes({prefix + k: v for k, v in original.items()}).keys() == (
        original.keys()
    )


def test_an_unknown_tensor_stops_the_import_and_is_named(tmp_path):
    tensors = {**load_file(FINETUNE), "blocks.0.attn.qvk.weight": np.zeros((2, 3), np.float32)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(
        ValueError,
        match=r"1 tensors .* not known, first 'blocks.0.attn.qvk.weight'"
        r" \(2, 3\): did you mean 'blocks.0.attn.qkv.weight'",
    ):
        files.load(tmp_path / "odd.safetensors")


def test_a_missing_layer_is_an_incomplete_file():
    tensors = {k: v for k, v in load_file(PRETRAIN).items() if "encoder.blocks.0" not in k}
    with pytest.raises(ValueError, match="layer 0 is missing, found"):
        to_ours(tensors, videomae.PRETRAIN, {})


def test_ignored_tensors_are_reported_with_their_reason():
    tensors = {**load_file(PRETRAIN), "decoder.pos_embed": np.zeros((1, 2, 3))}
    _, coverage = to_ours(tensors, videomae.PRETRAIN, videomae.IGNORED["videomae_pretrain"])
    assert coverage.ignored == {"decoder.pos_embed": "fixed position table, rebuilt"}
    assert "fixed position table, rebuilt: decoder.pos_embed" in coverage.text()


def test_a_parameter_without_a_torch_name():
    rules = [Rule("a.weight", "a/kernel", SAME)]
    with pytest.raises(ValueError, match="parameter 'a/kernle' has no torch name: did you mean"):
        to_torch({"a/kernle": np.zeros(3)}, rules, {})


def test_recognition_does_not_claim_other_families():
    tensors = load_file(FINETUNE)
    whole = FAMILY.recognise(tensors)
    odd = FAMILY.recognise({**tensors, "blocks.0.attn.qkv.bias": np.zeros(3)})
    assert whole is not None and odd is not None and odd.cover < whole.cover
    assert whole.cover.share == 1.0 and all(
        other.cover < whole.cover
        for family in families()
        if family is not FAMILY and (other := family.recognise(tensors)) is not None
    )
    assert FAMILY.recognise({"conv1.weight": np.zeros((2, 3, 4, 4))}) is None
    patch = {"patch_embed.proj.weight": np.zeros((4, 3, 16, 16), np.float32)}  # an image model
    assert FAMILY.recognise(patch) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.safetensors", None, "no such weight file"),
        ("text.safetensors", b"hello", "not a readable safetensors file"),
        ("empty.safetensors", b"", "not a readable safetensors file"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.load(path)


def test_a_file_of_another_model(tmp_path):
    save_file({"visual.conv1.weight": np.zeros((2, 2), np.float32)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="not the weights of a known model.*visual.conv1.weight"):
        files.load(tmp_path / "c.safetensors")


def test_command_line(tmp_path, capsys):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    assert main(["inspect", str(PRETRAIN)]) == 0
    assert "videomae_pretrain" in capsys.readouterr().out
    assert main(["import", str(PRETRAIN), "--out", str(ours)]) == 0
    assert main(["export", str(ours), "--out", str(back)]) == 0
    original, exported = load_file(PRETRAIN), load_file(back)
    assert all(original[k].tobytes() == exported[k].tobytes() for k in original)
    assert main(["import", str(tmp_path / "none.pth"), "--out", str(ours)]) == 2
    assert "no such weight file" in capsys.readouterr().err


@pytest.mark.torch
def test_torch_files_with_every_wrapping(tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs torch")
    import argparse

    state = {name: torch.from_numpy(value) for name, value in load_file(FINETUNE).items()}
    for key in (None, "model", "module", "state_dict"):
        content = state if key is None else {key: state, "epoch": 3, "args": argparse.Namespace()}
        torch.save(content, tmp_path / "file.pth")
        weights = files.load(tmp_path / "file.pth")
        files.save_torch(tmp_path / "back.safetensors", weights)
        back = load_file(tmp_path / "back.safetensors")
        assert all(back[name].tobytes() == value.numpy().tobytes() for name, value in state.items())


def test_torch_files_without_torch_say_what_to_do(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    torch_files.write(tmp_path / "file.pth", load_file(FINETUNE))
    with pytest.raises(ValueError, match=r"needs torch \(pip install 'internvideo-jax\[torch\]'\)"):
        files.load(tmp_path / "file.pth")
