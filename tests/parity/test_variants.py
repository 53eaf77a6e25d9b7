"""Adapters take sizes and options from their case: configs of cases that we do not have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from internvideo_jax.types import flatten_paths
from tests.parity import (
    internvideo2_adapters,
    internvideo2_classifier_adapters,
    model_adapters,
    teacher_adapters,
    umt_adapters,
    uniformerv2_adapters,
    viclip_adapters,
)


def case(config: dict[str, Any], *weights: str) -> Any:
    return SimpleNamespace(config=config, weights=dict.fromkeys(weights), meta={"outputs": config})


VIDEOMAE = {
    "style": "internvideo1",
    "img_size": 33,
    "patch_size": 11,
    "frames": 6,
    "tubelet": 3,
    "classes": 5,
    "dim": 20,
    "depth": 2,
    "heads": 5,
    "mlp_ratio": 2.3,
    "qkv_bias": False,
    "init_values": 0.2,
    "cos_attn": True,
    "mean_pool": False,
    "learnable_pos": False,
    "num_segment": 2,
    "interp": False,
}
POOLED = {
    "img_size": 15,
    "patch_size": 5,
    "embed_dim": 48,
    "num_heads": 3,
    "depth": 2,
    "mlp_ratio": 2.7,
    "attn_pool_num_heads": 6,
    "clip_embed_dim": 10,
    "num_frames": 3,
    "tubelet_size": 3,
    "init_values": 0,
    "qkv_bias": True,
    "qk_normalization": False,
}
STUDENT = {
    **POOLED,
    "sep_pos_embed": True,
    "clip_teacher_embed_dim": 7,
    "clip_teacher_final_dim": 0,
    "clip_return_index": [1],
    "mae_teacher_embed_dim": 0,
}
UMT = {
    "img_size": 112,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 4,
    "mlp_ratio": 1.5,
    "qkv_bias": True,
    "all_frames": 8,
    "tubelet_size": 1,
    "num_classes": 2,
}
UMT_STUDENT = {
    "img_size": 21,
    "patch_size": 7,
    "encoder_embed_dim": 20,
    "encoder_depth": 4,
    "encoder_num_heads": 2,
    "mlp_ratio": 2,
    "qkv_bias": False,
    "num_frames": 6,
    "tubelet_size": 2,
    "clip_output_dim": 9,
    "clip_return_layer": 2,
    "clip_student_return_interval": 2,
}
UNIFORMER = {
    "res": 10,
    "patch": 5,
    "width": 20,
    "layers": 2,
    "heads": 5,
    "t": 2,
    "dw_reduction": 3,
    "temporal_downsample": True,
    "no_lmhra": False,
    "double_lmhra": False,
    "return_list": [0],
    "mlp_factor": 1.7,
    "classes": 4,
    "frozen": True,
}
VICLIP = {
    "res": 18,
    "patch": 9,
    "width": 20,
    "layers": 1,
    "heads": 5,
    "embed": 6,
    "frames": 3,
    "txt_len": 5,
    "vocab": 17,
    "twidth": 12,
    "tlayers": 3,
    "theads": 2,
}
TEACHER = {
    "img_size": 20,
    "patch_size": 10,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 3.1,
    "all_frames": 9,
    "tubelet_size": 3,
    "mae_return_layer": 2,
    "mae_return_interval": 1.5,
}

CONFIGS = {
    "videomae": lambda: model_adapters.classifier_config(case(VIDEOMAE)),
    "student": lambda: internvideo2_adapters.student_config(STUDENT),
    "classifier": lambda: internvideo2_classifier_adapters.classifier_config(
        {**POOLED, "num_classes": 4, "merge_method": "cls_avgN", "merge_norm": "BN"}
    ),
    "umt": lambda: umt_adapters.classifier_config(case(UMT)),
    "umt_student": lambda: umt_adapters.student_config(case(UMT_STUDENT)),
    "uniformerv2": lambda: uniformerv2_adapters.model_config(case(UNIFORMER)),
    "viclip": lambda: viclip_adapters.model_config(case(VICLIP)),
    "teacher": lambda: teacher_adapters.videomae_config(TEACHER, {}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_follows_its_case(name):
    config = CONFIGS[name]()
    shapes = flatten_paths(config.model().shapes())
    wanted = {
        "videomae": (20, 2, 5, 46, 6, 33, 11, 3),
        "student": (48, 2, 3, 129, 3, 15, 5, 3),
        "classifier": (48, 2, 3, 129, 3, 15, 5, 3),
        "umt": (16, 1, 4, 24, 8, 112, 8, 1),
        "umt_student": (20, 4, 2, 40, 6, 21, 7, 2),
        "uniformerv2": (20, 2, 5, 80, 2, 10, 5, 2),
        "viclip": (20, 1, 5, 80, 3, 18, 9, 1),
        "teacher": (24, 3, 2, 74, 9, 20, 10, 3),
    }[name]
    encoder = config.encoder
    found = (encoder.width, encoder.depth, encoder.heads, encoder.hidden)
    assert (*found, config.frames, config.resolution, config.patch, config.tubelet) == wanted
    assert shapes["encoder/blocks/mlp/fc1/kernel"].shape == (wanted[1], wanted[0], wanted[3])


def test_options_that_sizes_do_not_tell():
    videomae, student = CONFIGS["videomae"](), CONFIGS["student"]()
    assert videomae.cosine and not videomae.qkv_bias and videomae.layer_scale == 0.2
    assert (videomae.pooling, videomae.clips, videomae.pos_table) == ("first_token", 2, "sincos")
    assert (student.pos_table, student.clip_layers, student.mae_layers) == ("separable", (1,), ())
    assert (student.layer_scale, student.qk_norm, student.qkv_bias) == (0.0, False, True)
    assert CONFIGS["umt_student"]().clip_layers == (1, 3)
    assert CONFIGS["teacher"]().layers == (1, 2)
    classifier = CONFIGS["classifier"]()
    assert (classifier.merge, classifier.merge_norm) == ("cls_avgN", "BN")
    uniformer = CONFIGS["uniformerv2"]()
    assert (uniformer.local_blocks, uniformer.local_width, uniformer.frozen) == (1, 6, True)


def test_the_base_of_unmasked_teacher_is_counted_in_tokens():
    """8 x 14 x 14 of any patch: at 112 pixels of patch 8 the table is the flat one."""
    flat = CONFIGS["umt"]()
    assert flat.base_grid() == flat.grid == (8, 14, 14)
    np.testing.assert_array_equal(
        flat.fixed_positions(), model_adapters.sincos(flat.tokens, flat.encoder.width)
    )
    other = umt_adapters.classifier_config(case({**UMT, "img_size": 40, "patch_size": 20}))
    assert other.base_grid() == (8, 14, 14) and other.fixed_positions().shape == (32, 16)


def test_a_schedule_is_read_from_its_case():
    call = {"lr_schedule": "cosine_scheduler(lr,1e-5,epochs=5,niter=4,warmup_epochs=2)", "lr": 0.1}
    schedule, total = model_adapters.stated_schedule(case(call))
    rates = schedule(np.arange(total))
    assert total == 20 and rates[0] == 0.0 and rates[7] == 0.1
    last = 1e-5 + 0.5 * (0.1 - 1e-5) * (1 + np.cos(np.pi * 11 / 12))
    np.testing.assert_allclose(rates[-1], last)
