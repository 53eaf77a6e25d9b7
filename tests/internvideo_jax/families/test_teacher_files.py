"""What teachers are loaded from: published files, models of ours, other sizes and frames."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.families.clip import weights as clip
from internvideo_jax.families.internvideo2 import internvl_weights as internvl
from internvideo_jax.families.internvideo2.model import EncoderConfig
from internvideo_jax.families.internvideo2.teacher import InternVLConfig
from internvideo_jax.families.viclip import model as viclip_model
from internvideo_jax.families.videomae import model as videomae_model
from internvideo_jax.layers.tower import tower
from internvideo_jax.types import flatten_paths, unflatten_paths
from internvideo_jax.weights import files
from internvideo_jax.weights.rules import to_torch
from tests.internvideo_jax.families.test_teachers import (
    SMALL,
    TEACHER,
    VIDEO,
    applied,
    drawn,
    jit,
    model,
)


def load(path, config):
    """Parameters of a teacher from a file; every one of them, or the test fails."""
    params, report = initialise(str(path), model(config).shapes(), config)
    report.require_all()
    assert not report.fresh
    return flatten_paths(params), report


def save_model(path, kind: str, config: Any, geometry: dict[str, int]):
    """A file of ours with drawn weights of one of our models."""
    params = flatten_paths(drawn(config))
    files.save_ours(path, files.Weights(kind, params, geometry))
    return params


def test_a_videomae_of_ours_teaches(tmp_path):
    student = videomae_model.PretrainConfig(**SMALL, decoder=tower(16, 1, 2))
    path = tmp_path / "videomae.safetensors"
    source = save_model(path, "videomae_pretrain", student, {"tubelet": 2, "patch": 8})
    loaded, report = load(path, TEACHER["videomae_v2"])
    assert all((loaded[name] == source[name]).all() for name in loaded)
    assert all(name.startswith(("decoder", "encoder_to_", "mask_")) for name in report.skipped)
    # The same tokens: after the last block they go through the same norm.
    teacher = dataclasses.replace(TEACHER["videomae_v2"], layers=(3,))
    taught = applied(teacher)(unflatten_paths(loaded), VIDEO)["middle"][0]
    features = functools.partial(student.model().apply, method="features")
    tokens = jit(features)(unflatten_paths(source), VIDEO)
    norm = np.linalg.norm(tokens, axis=-1, keepdims=True)
    np.testing.assert_allclose(taught, tokens / norm, atol=1e-5)


def test_a_viclip_of_ours_teaches(tmp_path):
    student = viclip_model.ViCLIPConfig(
        **SMALL, embedding=12, text=tower(16, 1, 2), context=8, vocab=30
    )
    path = tmp_path / "viclip.safetensors"
    source = save_model(path, "viclip", student, {"patch": 8})
    loaded, report = load(path, TEACHER["viclip"])
    assert all(name.startswith(("text/", "temperature")) for name in report.skipped)
    taught = applied(TEACHER["viclip"])(unflatten_paths(loaded), VIDEO)
    encode = functools.partial(student.model().apply, method="encode_video")
    video = jit(encode)(unflatten_paths(source), VIDEO)
    norm = np.linalg.norm(video, axis=-1, keepdims=True)
    np.testing.assert_allclose(taught["final"], video / norm, atol=1e-5)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "image_half"])
def test_clip_file_of_another_size(tmp_path, whole):
    big = dataclasses.replace(TEACHER["clip"], resolution=32)
    source = flatten_paths(drawn(big))
    kind = "clip" if whole else "clip_visual"
    path = tmp_path / "clip.safetensors"
    tensors = to_torch(source, clip.RULES[kind], {"patch": 8})
    if whole:
        tensors["logit_scale"] = np.array(4.6, np.float32)
    save_file({name: np.asarray(value) for name, value in tensors.items()}, path)
    loaded, report = load(path, TEACHER["clip"])
    assert report.resized == ("encoder/pos_embed/table",)
    kernel = "encoder/patch_embed/kernel"
    np.testing.assert_array_equal(loaded[kernel], source[kernel])


def internvl_tensors(config: InternVLConfig) -> dict[str, np.ndarray]:
    """A file as published: images' patch embedding, and the language half."""
    tensors = to_torch(flatten_paths(drawn(config)), internvl.RULES["internvl"], {"patch": 8})
    assert tensors["patch_embed.proj.weight"].shape == (32, 3, 8, 8)
    rng = np.random.default_rng(5)
    names = ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "norm.weight")
    language = {f"transformer.{name}": rng.normal(size=(4, 4)) for name in names}
    language |= {"text_projection": rng.normal(size=(4, 12)), "logit_scale": np.ones(())}
    return tensors | {name: value.astype(np.float32) for name, value in language.items()}


@pytest.mark.parametrize("size", [16, 24])
def test_internvl_file(tmp_path, size):
    tensors = internvl_tensors(TEACHER["internvl"])
    path = tmp_path / "internvl.safetensors"
    save_file(tensors, path)
    found = files.load(path)
    assert found.kind == "internvl" and found.coverage is not None
    assert len(found.coverage.ignored) == 5
    config = dataclasses.replace(TEACHER["internvl"], resolution=size)
    loaded, report = load(path, config)
    assert bool(report.resized) == (size == 24)
    assert not report.skipped
    if size == 16:
        source = flatten_paths(drawn(TEACHER["internvl"]))
        assert all((loaded[name] == source[name]).all() for name in source)


def test_internvl_file_without_the_language_half(tmp_path):
    save_file(
        {
            name: value
            for name, value in internvl_tensors(TEACHER["internvl"]).items()
            if not name.startswith(("transformer", "text_", "logit"))
        },
        tmp_path / "tower.safetensors",
    )
    load(tmp_path / "tower.safetensors", TEACHER["internvl"])


def test_internvl_file_with_an_unknown_tensor(tmp_path):
    tensors = internvl_tensors(TEACHER["internvl"]) | {"blocks.0.attn.bias": np.zeros(3)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="not known, first 'blocks.0.attn.bias'"):
        files.load(tmp_path / "odd.safetensors")


def test_internvideo2_of_fewer_frames(tmp_path):
    """A stage-2 encoder has positions for 4 frames; its teacher here reads 8."""
    shorter = EncoderConfig(**SMALL, embedding=12, pool_heads=4)
    path = tmp_path / "internvideo2.safetensors"
    save_model(path, "internvideo2", shorter, {"tubelet": 1, "patch": 8})
    config = dataclasses.replace(TEACHER["internvideo2"], frames=8, pos_frames=4)
    _, report = load(path, config)
    assert report.resized == ("encoder/pos_embed/table",)


def test_internvl_tower_that_is_a_model_of_ours(tmp_path):
    """An encoder of single frames, from which a run knows how many frames it had."""
    single = EncoderConfig(**{**SMALL, "frames": 1, "resolution": 24}, embedding=12, pool_heads=4)
    path = tmp_path / "tower.safetensors"
    save_model(path, "internvideo2", single, {"tubelet": 1, "patch": 8, "frames": 1})
    _, report = load(path, TEACHER["internvl"])
    assert report.resized == ("encoder/pos_embed/table",)


def test_initial_weights_ask_the_teacher(tmp_path):
    path = tmp_path / "videomae.safetensors"
    config = dataclasses.replace(TEACHER["videomae_v2"], pos_table="separable")
    geometry = {"tubelet": 2, "patch": 8, "pos_table": "sincos"}
    save_model(path, "videomae_pretrain", TEACHER["videomae_v2"], geometry)
    with pytest.raises(ValueError, match="does not fit this model: the run was trained with"):
        load(path, config)
