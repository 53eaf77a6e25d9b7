"""What a file is said to be, and the files that are no weights or only half of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.families.umt.model import CLASSIFIER, UMTStudentConfig
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.viclip.model import ViCLIPConfig
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files, wrappers, zoo
from internvideo_jax.weights.__main__ import main
from internvideo_jax.weights.huggingface import guess_config
from internvideo_jax.weights.identify import identify
from tests.conftest import ROOT

GOLDEN = ROOT / "tests/golden/videomae"
PRETRAIN = GOLDEN / "pretrain_v2_dual/weights.safetensors"
FINETUNE = GOLDEN / "finetune_v2_mean/weights.safetensors"
UNIFORMERV2 = GOLDEN / "uniformerv2_full/weights.safetensors"


def identified(config, path: str, without: str = "none/"):
    shapes = flatten_paths(config.model().shapes())
    shapes = {name: leaf for name, leaf in shapes.items() if not name.startswith(without)}
    geometry = {"patch": config.patch}
    if hasattr(config, "tubelet"):
        geometry["tubelet"] = config.tubelet
    return identify(config.name, shapes, geometry, path)


def test_a_published_file_is_known_by_name_and_shapes():
    found = identified(
        VideoMAEClassifierConfig.of_size("giant", classes=174),
        "w/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    )
    assert [entry.name for entry in found.named] == ["v2/vit_g_hybrid_pt_1200e_ssv2_ft"]
    assert found.size == "giant" and found.facts["classes"] == 174
    evaluate, train = found.commands
    assert "--config=configs/videomae/finetune.py:recipe=v2/g_ssv2" in evaluate
    assert "--checkpoint=w/vit_g_hybrid_pt_1200e_ssv2_ft.pth" in evaluate
    assert "--config.init_from=w/vit_g_hybrid_pt_1200e_ssv2_ft.pth" in train
    text = found.text()
    assert "by name and shapes" in text and "reported 77.0 / 95.9" in text
    assert "frames and pixels are not in the file" in text


def test_a_renamed_file_is_known_by_its_shapes():
    found = identified(VideoMAEClassifierConfig.of_size("base", classes=710), "mine.pth")
    assert {entry.name for entry in found.alike} == {
        "v2/vit_b_k710_dl_from_giant",
        "internvideo1/vit_b_hybrid_pt_800e_k710_ft",
    }
    assert "by shapes alone" in found.text()


def test_files_of_unmasked_teacher():
    (known,) = identified(UMTStudentConfig.of_size("base"), "b16_ptk710_f8_res224.pth").named
    assert known.name == "umt/b16_ptk710_f8_res224"
    found = identified(UMTStudentConfig.of_size("large", clip_width=768), "mine.pth")
    assert [entry.name for entry in found.alike] == ["umt/l16_ptk710_f8_res224"]
    assert "a classifier takes the encoder" in found.text()
    (command,) = found.commands
    assert "--config=configs/umt/finetune.py:recipe=l_k710 --config.init_from=mine.pth" in command
    # The tubelet tells its classifier from VideoMAE's, here of a set that is not published.
    settings = {"classes": 51, "frames": 8, **CLASSIFIER}
    found = identified(VideoMAEClassifierConfig.of_size("base", **settings), "mine.pth")
    assert not found.alike
    assert "--config=configs/umt/finetune.py:recipe=b_k710" in found.commands[0]


def test_files_of_viclip_and_clip():
    found = identified(ViCLIPConfig.of_size("large"), "w/ViClip-InternVid-10M-FLT.pth")
    assert [entry.name for entry in found.named] == ["viclip/ViClip-InternVid-10M-FLT"]
    assert "reported 64.80 / 62.20 / 54.30" in found.text() and "257 positions" in found.text()
    assert all("configs/viclip/pretrain.py:size=large --" in each for each in found.commands)
    (known,) = zoo.match("ViT-L-14-336px.pt")
    shapes = {
        name.replace("temporal", "none"): leaf
        for name, leaf in flatten_paths(ViCLIPConfig.of_size("large336").model().shapes()).items()
    }
    found = identify("clip", shapes, {"patch": 14}, "ViT-L-14-336px.pt")
    assert found.named == (known,) and found.size == "large336"
    (start,) = found.commands
    assert "uniformerv2/finetune.py:data=kinetics,start=clip,size=large336 --" in start


def test_settings_of_the_entry_are_in_the_command():
    found = identified(
        VideoMAEClassifierConfig.of_size(
            "huge", classes=400, frames=32, resolution=384, pos_table="resized"
        ),
        "ViT-H_f32_res384_89.54.pth",
    )
    assert "--config.evals.test.views.clip.frames=32" in found.commands[0]
    model = UniFormerV2Config.of_size("large", classes=400, frames=32)
    found = identified(model, "k400_k710_uniformerv2_l14_32x224.pyth")
    assert "frames=32 --checkpoint=" in found.commands[0]
    assert found.commands[0].endswith("--config.evals.test.views.clips=2")
    assert "224 pixels" in found.text() and "no local blocks" in found.text()


def test_a_pretrained_file_comes_with_the_command_to_fine_tune():
    found = identified(
        PretrainConfig.of_size("large", decoder_depth=12), "vit_l_hybrid_pt_800e.pth"
    )
    (train,) = found.commands
    assert "finetune.py:recipe=internvideo1/l_k400" in train and "evaluate" not in train
    assert "decoder 512 x 12" in found.text()


def test_a_name_that_the_shapes_contradict_is_remarked():
    found = identified(
        VideoMAEClassifierConfig.of_size("base", classes=9), "vit_b_hybrid_pt_800e_k400_ft.pth"
    )
    assert not found.named and not found.alike
    assert "that has classes = 400 and this 9" in found.text()
    assert "finetune.py:size=base" in found.commands[0]


def test_what_is_missing_is_remarked():
    size = PretrainConfig.of_size("huge_nju", decoder_depth=12)
    found = identified(size, "x.pth", without=("decoder", "encoder_to", "mask_token"))
    assert "no decoder: enough to fine-tune" in found.text()
    assert "videomae/h_k400_pretrained" in {entry.name for entry in found.alike}
    found = identified(
        VideoMAEClassifierConfig.of_size("base", classes=9), "x.pth", without="head/"
    )
    assert "no head: enough to fine-tune" in found.text() and len(found.commands) == 1


def test_too_few_layers_for_a_published_width():
    model = VideoMAEClassifierConfig.of_size("base", classes=400)
    shapes = {
        path: np.broadcast_to(np.float32(0), (6, *leaf.shape[1:])) if "/blocks/" in path else leaf
        for path, leaf in flatten_paths(model.model().shapes()).items()
    }
    found = identify(model.name, shapes, {"patch": 16, "tubelet": 2}, "x.pth")
    assert found.size == "" and "6 layers of the 12 that base has" in found.text()


def test_the_config_of_a_file_is_that_of_its_size():
    model = PretrainConfig.of_size("giant", decoder_depth=4)
    geometry = {"tubelet": 2, "patch": 14}
    assert guess_config(model.name, flatten_paths(model.model().shapes()), geometry) == model
    with pytest.raises(
        ValueError, match="only VideoMAE, .* have a Hugging Face layout.*this is uniformerv2"
    ):
        guess_config("uniformerv2", {}, geometry)


def test_the_command_prints_it(capsys):
    assert main(["inspect", str(UNIFORMERV2)]) == 0
    assert "UniFormerV2, fine-tuned" in capsys.readouterr().out
    assert main(["list", "v2", "hmdb51"]) == 0
    out = capsys.readouterr().out
    assert "v2/vit_g_hybrid_pt_1200e_k710_it_hmdb51_ft" in out and "ssv2" not in out
    assert main(["list", "nothing-like-this"]) == 2


# Files that are something else.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><title>Quota exceeded</title>", "a web page, not weights.*Quota"),
        (b"\n  <html>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
        (b"", "empty file"),
    ],
)
def test_files_that_are_no_weights(content, message, tmp_path):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.load(tmp_path / "model.pth")


def test_a_safetensors_file_is_known_whatever_its_ending(tmp_path):
    (tmp_path / "model.pth").write_bytes(FINETUNE.read_bytes())
    assert files.load(tmp_path / "model.pth").kind == "videomae_classifier"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {"base.blocks.0.attn.qkv.lora_A.weight": np.zeros((2, 4), np.float32)},
            "a LoRA adapter .*merge",
        ),
        (
            lambda t: {**t, "head.weight": t["head.weight"].astype(np.int8)},
            "quantised weights .1 tensors, first head.weight int8",
        ),
        (
            lambda t: {f"{name}.exp_avg": value for name, value in t.items()},
            "the state of an optimizer",
        ),
        (
            lambda t: {name: value for name, value in t.items() if "blocks.1.mlp" not in name},
            "incomplete",
        ),
        (
            lambda t: {name: value for name, value in t.items() if "mlp.fc1.weight" not in name},
            r"1 of \d+ parameters are missing, first blocks.\{i\}.mlp.fc1.weight",
        ),
        (
            lambda t: {name: value for name, value in t.items() if name != "head.bias"},
            "1 of 2 parameters are missing, first head.bias",
        ),
        (lambda t: {**t, **load_file(PRETRAIN)}, "a mixture: .* that belong to videomae"),
    ],
    ids=["lora", "int8", "optimizer", "last-mlp", "all-fc1", "half-a-head", "two-models"],
)
def test_files_with_something_else_or_not_all(change, message, tmp_path):
    save_file(change(load_file(FINETUNE)), tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        files.load(tmp_path / "file.safetensors")
    assert "file.safetensors" in str(error.value)


def test_half_a_uniformerv2(tmp_path):
    tensors = load_file(UNIFORMERV2)
    lost = {k: v for k, v in tensors.items() if "transformer.dec.1.ln_3" not in k}
    save_file(lost, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="has 1 layers and .* 2; the file is incomplete"):
        files.load(tmp_path / "half.safetensors")


def test_a_pretrained_encoder_without_a_decoder_is_whole(tmp_path):
    encoder = {k: v for k, v in load_file(PRETRAIN).items() if k.startswith("encoder.")}
    save_file(encoder, tmp_path / "encoder.safetensors")
    assert files.load(tmp_path / "encoder.safetensors").kind == "videomae_pretrain"
    save_file(
        {**encoder, "mask_token": np.zeros((1, 1, 24), np.float32)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(ValueError, match="parameters are missing"):
        files.load(tmp_path / "x.safetensors")


# Wrappers, without torch: an array stands for a tensor.

STATE = {"head.weight": np.zeros(2), "head.bias": np.zeros(1)}
OPTIMIZER = {"state": {0: {"exp_avg": np.zeros(2)}}, "param_groups": []}


def is_tensor(value: object) -> bool:
    return isinstance(value, np.ndarray)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (STATE, wrappers.TOP),
        ({"model": STATE, "optimizer": OPTIMIZER, "epoch": np.zeros(())}, "model"),
        ({"module": STATE, "model_ema": STATE}, "module"),
        ({"model": {"module": STATE}}, "model.module"),
        ({"epoch": 3, "student": {"net": STATE}}, "student.net"),
        ({"model_ema": STATE}, "model_ema"),
        ({"model_state": STATE, "optimizer_state": OPTIMIZER, "scaler": {}}, "model_state"),
    ],
)
def test_weights_are_found_in_any_wrapper(content, place):
    assert wrappers.find_tensors(content, is_tensor, Path("f")) == (STATE, place)


def test_a_wrapper_can_be_named():
    averaged = {name: value + 1 for name, value in STATE.items()}
    content = {"model": STATE, "model_ema": averaged}
    found, _ = wrappers.find_tensors(content, is_tensor, Path("f"), "model_ema")
    assert found is not STATE and found["head.bias"][0] == 1
    assert wrappers.other_places(content, is_tensor, "model") == ["model_ema"]
    with pytest.raises(ValueError, match="no weights under 'modle_ema': did you mean 'model_ema'"):
        wrappers.find_tensors(content, is_tensor, Path("f"), "modle_ema")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": OPTIMIZER, "epoch": 2}, "the state of an optimizer without the weights"),
        (OPTIMIZER, "the state of an optimizer without the weights"),
        ({"epoch": 2}, r"no tensors found, at the top or under model.*top level: epoch"),
        ([1, 2], "no tensors found.*content: list"),
        ({"a": STATE, "b": STATE}, "several sets of weights, under a, b; choose one with --key"),
    ],
)
def test_contents_without_weights(content, message):
    with pytest.raises(ValueError, match=message):
        wrappers.find_tensors(content, is_tensor, Path("f"))


def test_prefixes_in_any_order():
    for prefix in ("module._orig_mod.", "_orig_mod.module.", "model.", "backbone."):
        assert wrappers.strip_prefixes([prefix + "a", prefix + "b"]) == {
            prefix + "a": "a",
            prefix + "b": "b",
        }
    assert wrappers.strip_prefixes(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}


@pytest.mark.torch
def test_torch_files_nested_averaged_and_in_bfloat16(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="reading .pth needs torch")
    state = {name: torch.from_numpy(value) for name, value in load_file(FINETUNE).items()}
    half = {name: value.bfloat16() for name, value in state.items()}
    path = tmp_path / "nested.pth"
    torch.save({"epoch": 3, "student": {"module": state}, "model_ema": half}, path)
    weights = files.load(path)
    assert (weights.place, weights.elsewhere) == ("student.module", ("model_ema",))
    averaged = files.load(path, "model_ema")
    files.save_ours(tmp_path / "ours.safetensors", averaged)
    files.save_torch(tmp_path / "back.safetensors", files.load(tmp_path / "ours.safetensors"))
    from safetensors.torch import load_file as load_torch

    back = load_torch(tmp_path / "back.safetensors")
    assert all(torch.equal(back[name], value) for name, value in half.items())
    assert main(["inspect", str(path)]) == 0
    assert "other weights in the file, for --key: model_ema" in capsys.readouterr().out
    torch.save({"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, path)
    assert main(["inspect", str(path)]) == 2
    assert "the state of an optimizer without the weights" in capsys.readouterr().err
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(ValueError, match="TorchScript archive.*state_dict"):
        files.load(path)
    torch.save({"model": state, "extra": Path("x")}, path)
    with pytest.raises(ValueError, match="holds an object of .*pathlib"):
        files.load(path)
