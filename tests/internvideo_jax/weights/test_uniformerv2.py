"""UniFormerV2 and CLIP files: recognition, the way back, inflation, what does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.checkpoint import initial
from internvideo_jax.models.uniformerv2 import UniFormerV2Config
from internvideo_jax.models.videomae import tower
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files
from tests.conftest import ROOT

GOLDEN = ROOT / "tests/golden/videomae"
FULL = GOLDEN / "uniformerv2_full/weights.safetensors"
KINETICS = GOLDEN / "uniformerv2_k400/weights.safetensors"
IMAGE = ("class_embedding", "positional_embedding", "ln_pre.", "transformer.resblocks.")


def config(**changes) -> UniFormerV2Config:
    settings = {
        "frames": 8,
        "size": 24,
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
    files.save_ours(tmp_path / "ours.safetensors", weights)
    files.save_torch(tmp_path / "back.safetensors", files.load(tmp_path / "ours.safetensors"))
    back = load_file(tmp_path / "back.safetensors")
    assert original.keys() == back.keys()
    for name, value in original.items():
        assert (value.dtype, value.shape) == (back[name].dtype, back[name].shape), name
        assert value.tobytes() == back[name].tobytes(), name


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
    model = config(size=36)
    fresh = blank(model)
    with pytest.raises(ValueError, match=r"pos_embed/table: found \(17, 36\), expected \(37, 36\)"):
        initial.initialise(str(FULL), fresh, model)
