"""Files of InternVideo2's classifier: what is around the names, what is said about them."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.families.internvideo2.classifier import InternVideo2ClassifierConfig
from internvideo_jax.families.internvideo2.model import EncoderConfig
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.weights import files
from tests.conftest import ROOT
from tests.internvideo_jax.weights.test_identify import identified

GOLDEN = ROOT / "tests/golden/internvideo2_stage1"
FINETUNE = GOLDEN / "finetune_sep_pos/weights.safetensors"
BATCH_NORM = GOLDEN / "probe_cat_cls_avg1_BN/weights.safetensors"


def renamed(tmp_path, rename, keep=lambda name: True):
    path = tmp_path / "file.safetensors"
    tensors = {rename(name): x for name, x in load_file(FINETUNE).items() if keep(name)}
    save_file(tensors, str(path))
    return files.load(path)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "module.encoder."])
def test_prefixes_of_all_names(tmp_path, prefix):
    plain, found = files.load(FINETUNE), renamed(tmp_path, lambda name: prefix + name)
    assert found.kind == plain.kind == "internvideo2_classifier"
    assert set(found.params) == set(plain.params)
    assert found.geometry == {"tubelet": 1, "patch": 7}


@pytest.mark.parametrize("prefix", ["backbone.", "encoder."])
def test_an_encoder_with_a_head_beside_it(tmp_path, prefix):
    def rename(name):
        return name if name.startswith(("head.", "fc_norm.")) else prefix + name

    assert set(renamed(tmp_path, rename).params) == set(files.load(FINETUNE).params)


def test_the_encoder_of_a_classifier_alone_is_one(tmp_path):
    found = renamed(
        tmp_path, lambda name: name, lambda name: not name.startswith(("head.", "fc_norm."))
    )
    assert found.kind == "internvideo2"


def test_a_cut_off_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="incomplete"):
        renamed(tmp_path, lambda name: name, lambda name: name != "fc_norm.bias")


@pytest.mark.parametrize("path", [FINETUNE, BATCH_NORM])
def test_there_and_back_bit_for_bit(tmp_path, path):
    weights = files.load(path)
    files.save_torch(tmp_path / "out.safetensors", weights)
    back, there = load_file(tmp_path / "out.safetensors"), load_file(path)
    assert set(back) == set(there)
    for name, value in there.items():
        assert back[name].tobytes() == np.asarray(value).tobytes(), name


def test_what_a_file_is_and_what_to_do_with_it():
    found = identified(InternVideo2ClassifierConfig.of_size("1b", classes=174), "mine.pt")
    assert found.size == "1b" and "174 classes" in found.text()
    evaluate, train = found.commands
    assert "configs/internvideo2/finetune.py:recipe=1b_ssv2" in evaluate
    assert "--checkpoint=mine.pt" in evaluate and "pos_frames" not in evaluate
    assert "--config.init_from=mine.pt" in train and "pos_frames" not in train
    found = identified(EncoderConfig.of_size("1b", frames=4), "stage2.pt")
    (train,) = found.commands
    assert "recipe=1b_k710" in train and "--config.model.pos_frames=4" in train
    found = identified(StudentConfig.of_size("small", clip_width=1408), "distilled.bin")
    assert found.size == "small" and "decoders and their tables stay behind" in found.text()
    assert "recipe=s_k710" in found.commands[0]


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({"extra_mlp": True}, "attentive/6b_ssv2"),
        ({"merge": "cls_avgN_proj"}, "linear/6b_ssv2"),
        ({"merge": "cls_avg1", "merge_norm": "BN"}, ""),
    ],
)
def test_probes_are_told_by_their_heads(changes, recipe):
    found = identified(
        InternVideo2ClassifierConfig.of_size("6b", classes=174, **changes), "probe.pt"
    )
    commands = " ".join(found.commands)
    assert (f"probe.py:recipe={recipe}" in commands) if recipe else not commands
