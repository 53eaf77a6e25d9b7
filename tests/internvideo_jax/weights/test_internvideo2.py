"""InternVideo2 files: spellings, what stage 2 adds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.families.internvideo2.family import FAMILY as INTERNVIDEO2
from internvideo_jax.families.videomae.family import FAMILY as VIDEOMAE
from internvideo_jax.weights import files
from internvideo_jax.weights.family import recognise
from tests.conftest import ROOT

CASE = ROOT / "tests/golden/internvideo2_stage1/stage1_pretrain/weights.safetensors"
OTHER = ROOT / "tests/golden/internvideo2_stage1/umt_finetune/weights.safetensors"
DECODERS = ("clip_decoder", "mae_decoder", "final_clip_decoder", "clip_pos_embed", "mae_pos_embed")


def student() -> dict[str, np.ndarray]:
    return load_file(CASE)


def backbone() -> dict[str, np.ndarray]:
    return {name: x for name, x in student().items() if not name.startswith(DECODERS)}


def loaded(tmp_path, tensors) -> files.Weights:
    save_file(tensors, tmp_path / "file.safetensors")
    return files.load(tmp_path / "file.safetensors")


def test_kinds(tmp_path):
    assert loaded(tmp_path, student()).kind == "internvideo2_student"
    found = loaded(tmp_path, backbone())
    assert found.kind == "internvideo2" and dict(found.geometry) == {"tubelet": 1, "patch": 10}
    other = load_file(OTHER)
    for tensors, family in (
        (backbone(), INTERNVIDEO2),
        (student(), INTERNVIDEO2),
        (other, VIDEOMAE),
    ):
        best = recognise(tensors)
        assert best is not None and best.family is family and best.cover.share == 1.0


@pytest.mark.parametrize("ending", [".weight", ""])
def test_other_spellings_of_layer_scale(tmp_path, ending):
    expected = loaded(tmp_path, backbone()).params
    renamed = {name.replace(".gamma", ending): x for name, x in backbone().items()}
    assert renamed.keys() != backbone().keys()
    found = loaded(tmp_path, renamed)
    assert found.params.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found.params[path], value, err_msg=path)


def test_a_file_of_stage_2_gives_its_encoder(tmp_path):
    expected = loaded(tmp_path, backbone()).params
    tensors = {f"vision_encoder.{name}": x for name, x in student().items()}
    tensors |= {
        "vision_encoder.img_pos_embed": np.zeros((1, 17, 32), np.float32),
        "vision_encoder.clip_img_pos_embed": np.zeros((1, 17, 32), np.float32),
        "text_encoder.bert.embeddings.word_embeddings.weight": np.zeros((9, 4), np.float32),
        "vision_proj.weight": np.zeros((4, 24), np.float32),
        "itm_head.bias": np.zeros(2, np.float32),
        "temp": np.array(0.07, np.float32),
    }
    found = loaded(tmp_path, tensors)
    assert found.kind == "internvideo2" and found.coverage is not None
    assert "positions of single images" in found.coverage.text()
    for path, value in expected.items():
        np.testing.assert_array_equal(found.params[path], value, err_msg=path)
    assert found.params.keys() == expected.keys()


def test_a_layer_without_all_its_parts_is_no_whole_file(tmp_path):
    tensors = student()
    del tensors["blocks.3.ls2.gamma"]
    with pytest.raises(ValueError, match=r"gamma2 has 3 layers and .* 4|incomplete"):
        loaded(tmp_path, tensors)
    tensors = backbone()
    del tensors["clip_projector.norm1_v.bias"]
    with pytest.raises(ValueError, match="norm1_v.bias"):
        loaded(tmp_path, tensors)
