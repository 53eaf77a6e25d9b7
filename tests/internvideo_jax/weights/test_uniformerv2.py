"""UniFormerV2 and CLIP files: recognition, the way back, inflation, what does not fit."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.checkpoint import initial
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.layers.tower import tower
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files
from tests.conftest import ROOT
from tests.internvideo_jax.weights.made import comes_back

GOLDEN = ROOT / "tests/golden/videomae"
FULL = GOLDEN / "uniformerv2_full/weights.safetensors"
KINETICS = GOLDEN / "uniformerv2_k400/weights.safetensors"
IMAGE = ("class_embedding", "positional_embedding", "ln_pre.", "transformer.resblocks.")


def config(**changes) -> UniFormerV2Config:
    settings = {
        "frames": 8,
        "resolution": 24,
        "patch": 6,
        "classes": 9,
        "temporal_downsample": True,
        "local_blocks": 2,
        "global_layers": (1, 2),
        **changes,
    }
    return UniFormerV2Config(encoder=tower(36, 3, 3), **settings)


def blank(model: UniFormerV2Config):
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), model.model().shapes())


def clip_visual() -> dict[str, np.ndarray]:
    """The image half of a CLIP file, as the reference cuts it out."""
    tensors = load_file(KINETICS)
    image = {name: value for name, value in tensors.items() if name.startswith(IMAGE)}
    return {"conv1.weight": np.ascontiguousarray(tensors["conv1.weight"][:, :, 0]), **image}


@pytest.mark.parametrize("path", [FULL, KINETICS], ids=["something", "kinetics"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_import_export_returns_the_file(path, prefix, tmp_path):
    original = load_file(path)
    save_file(
        {prefix + name: value for name, value in original.items()}, tmp_path / "in.safetensors"
    )
    weights = files.load(tmp_path / "in.safetensors")
    assert weights.kind == "uniformerv2" and weights.geometry == {"patch": 6}
    comes_back(weights, original, tmp_path)


def test_a_model_takes_its_own_file_except_a_head_for_other_classes():
    for classes, fresh_head in ((9, False), (4, True)):
        model = config(classes=classes)
        fresh = blank(model)
        _, report = initial.initialise(str(FULL), fresh, model)
        assert set(report.fresh) == ({"head/kernel", "head/bias"} if fresh_head else set())
        assert all(path.endswith("/count") for path in report.skipped if "head/" not in path)


@pytest.mark.parametrize("whole", [False, True], ids=["image-half", "whole-file"])
def test_clip_fills_the_image_transformer_and_its_patches_are_inflated(whole, tmp_path):
    head = {"proj": (36, 8), "ln_post.weight": (36,), "ln_post.bias": (36,)}
    tensors, other = clip_visual(), {k: np.ones(v, np.float32) for k, v in head.items()}
    if whole:
        tensors = {f"visual.{k}": v for k, v in {**tensors, **other}.items()}
        other = {"logit_scale": np.array(4.6, np.float32)}
    save_file({**tensors, **other}, tmp_path / "clip.safetensors")
    weights = files.load(tmp_path / "clip.safetensors")
    assert weights.coverage is not None and len(weights.coverage.ignored) == whole

    model = config()
    fresh = blank(model)
    params, report = initial.initialise(str(tmp_path / "clip.safetensors"), fresh, model)
    flat = flatten_paths(params)
    assert {path.split("/")[0] for path in report.loaded} == {"encoder"}
    assert all("local" in p for p in report.fresh if p.startswith("encoder/"))
    kernel = np.asarray(flat["encoder/patch_embed/kernel"]).reshape(3, 6, 6, 3, 36)
    assert (kernel[0] == 0).all() and (kernel[2] == 0).all()
    np.testing.assert_array_equal(
        kernel[1].transpose(3, 2, 0, 1), load_file(KINETICS)["conv1.weight"][:, :, 0]
    )


def test_positions_of_another_size_are_refused_not_resized():
    model = config(resolution=36)
    fresh = blank(model)
    with pytest.raises(ValueError, match=r"pos_embed/table: found \(17, 36\), expected \(37, 36\)"):
        initial.initialise(str(FULL), fresh, model)


def vit(width: int = 36, depth: int = 3, patch: int = 6, places: int = 16) -> dict[str, np.ndarray]:
    """Random weights with the names and shapes of a DINO file."""
    draw = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + places, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"blocks.{i}.{name}.weight"] = (rows, columns)
            shapes[f"blocks.{i}.{name}.bias"] = (rows,)
        for norm in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{norm}.weight"] = shapes[f"blocks.{i}.{norm}.bias"] = (width,)
    return {name: draw.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def vit_forward(w: dict[str, np.ndarray], image: np.ndarray, heads: int) -> np.ndarray:
    """A plain image transformer in float64: (H, W, 3) -> (1 + N, D) after the last block."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    width, patch = w["cls_token"].shape[-1], w["patch_embed.proj.weight"].shape[-1]
    side = image.shape[0] // patch
    cells = image.reshape(side, patch, side, patch, 3).transpose(0, 2, 4, 1, 3)
    x = cells.reshape(side * side, -1) @ w["patch_embed.proj.weight"].reshape(width, -1).T
    x = np.concatenate([w["cls_token"][0], x + w["patch_embed.proj.bias"]]) + w["pos_embed"][0]
    erf = np.vectorize(math.erf)
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    for block in (f"blocks.{i}" for i in range(depth)):
        q, k, v = (
            linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
            .reshape(len(x), 3, heads, -1)
            .transpose(1, 2, 0, 3)
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5)
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        x = x + linear(mixed.transpose(1, 0, 2).reshape(len(x), -1), f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(0.5 * hidden * (1 + erf(hidden / 2**0.5)), f"{block}.mlp.fc2")
    return x


def test_dino_weights_give_the_image_transformer_they_were_trained_as(tmp_path):
    tensors = vit()
    save_file(tensors, tmp_path / "dino.safetensors")
    model = config(backbone="vit", temporal_downsample=False, local_blocks=0, dtype="float32")
    params, report = initial.initialise(str(tmp_path / "dino.safetensors"), blank(model), model)
    assert not [path for path in report.fresh if path.startswith("encoder/")]
    video = np.random.default_rng(1).uniform(0, 1, (1, model.frames, 24, 24, 3))
    tokens = model.model().apply(params, jnp.asarray(video, jnp.float32), method="features")
    frame = (video[0, 1] - np.array(model.pixel_mean)) / np.array(model.pixel_std)
    expected = vit_forward(tensors, frame, heads=3)
    found = np.asarray(tokens).reshape(model.frames, -1, 36)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    weights = files.load(tmp_path / "dino.safetensors")
    assert weights.kind == "vit" and len(weights.coverage.ignored) == 2
    files.save_torch(tmp_path / "back.safetensors", weights)
    for name, value in load_file(tmp_path / "back.safetensors").items():
        assert value.tobytes() == tensors[name].tobytes(), name


def test_weights_of_the_other_form_of_image_transformer_are_refused(tmp_path):
    save_file(vit(), tmp_path / "dino.safetensors")
    with pytest.raises(ValueError, match="backbone is 'clip'; set it to 'vit'"):
        initial.initialise(str(tmp_path / "dino.safetensors"), blank(config()), config())
