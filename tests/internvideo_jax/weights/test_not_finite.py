"""Weights that are NaN or infinite: named, and never used; what a model does not take may be so."""

from __future__ import annotations

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.checkpoint.frozen import load_frozen
from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files, finite, huggingface
from internvideo_jax.weights.__main__ import main
from tests.internvideo_jax.weights.made import small_weights
from tests.internvideo_jax.weights.test_huggingface import classifier, pretrain, weights

QKV = "blocks.0.attn.qkv.weight"


def spoiled(value: np.ndarray, how: str) -> np.ndarray:
    changed = value.copy()
    if how == "nan":
        changed[...] = np.nan
    elif how == "one inf":
        changed.reshape(-1)[3] = -np.inf
    elif how == "overflow":  # as a conversion to half precision leaves it
        with np.errstate(over="ignore"):
            changed = (changed * 1e6).astype(np.float16)
    else:
        changed = np.full(value.shape, np.inf, ml_dtypes.bfloat16)
    return changed


@pytest.mark.parametrize(
    ("how", "count"), [("nan", 48), ("one inf", 1), ("overflow", None), ("bfloat16", 48)]
)
def test_every_command_names_them(how, count, tmp_path, capsys):
    path, other = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    tensors = small_weights()
    save_file(tensors, other)
    assert main(["inspect", str(other)]) == 0
    assert "not finite" not in capsys.readouterr().out
    save_file({**tensors, QKV: spoiled(tensors[QKV], how)}, path)
    assert main(["inspect", str(path)]) == 1
    found = re.search(
        r"\n1 of 19 tensors are not finite \(NaN or infinite values\): (\S+) \((\d+) of 48\)",
        capsys.readouterr().out,
    )
    assert found and found[1] == QKV and int(found[2]) == (count or int(found[2]))
    out = tmp_path / "out.safetensors"
    for command in (
        ["import", str(path), "--out", str(out)],
        ["export", str(path), "--out", str(out)],
        ["export", str(path), "--out", str(tmp_path / "out.pth")],
        ["average", str(other), str(path), "--out", str(out)],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"{path}: 1 of 19 tensors" in said and QKV in said and "nothing was written" in said
    assert not out.exists() and not (tmp_path / "out.pth").exists()


def test_files_of_ours_and_of_hugging_face_name_them_by_their_own_names(tmp_path, capsys):
    config = classifier()
    params = weights(config)
    params["encoder/blocks/attn/qkv/kernel"][1, 2, 0, 0] = np.nan  # a value of layer 1
    huggingface.save(tmp_path / "hf", params, config)
    assert main(["inspect", str(tmp_path / "hf")]) == 1
    layer = "videomae.encoder.layer.1.attention.attention.value.weight (1 of 1,024)"
    assert layer in capsys.readouterr().out
    ours = tmp_path / "ours.safetensors"
    files.save_ours(ours, files.Weights(config.name, params, {"tubelet": 2, "patch": 8}))
    assert main(["inspect", str(ours)]) == 1
    assert "encoder/blocks/attn/qkv/kernel (1 of 6,144)" in capsys.readouterr().out


def test_many_are_counted_and_some_named():
    tensors = {f"layer{n}": np.full(2, np.nan) for n in range(6)} | {"number": np.zeros(2, int)}
    text = finite.describe(tensors, 7)
    assert text.startswith("6 of 7 tensors") and text.endswith("layer3 (2 of 2) and 2 more")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_model_that_takes_them_does_not_start(value, tmp_path):
    config = dataclasses.replace(classifier())
    params = weights(config)
    kernel = params["head/kernel"].astype(np.float64)
    kernel[0, 0] = value  # 1e300 is infinite as float32
    params["head/kernel"] = kernel
    path = tmp_path / "x.safetensors"
    files.save_ours(path, files.Weights(config.name, params, {"tubelet": 2, "patch": 8}))
    with pytest.raises(ValueError, match=r"x.safetensors: 1 of .*: head/kernel \(1 of 160\)"):
        initialise(str(path), config.model().shapes(), config)


def test_a_teacher_that_has_them_does_not_start(tmp_path):
    config = classifier()
    params = weights(config)
    params["fc_norm/scale"][:] = np.nan
    huggingface.save(tmp_path, params, config)

    @dataclasses.dataclass
    class Plan:
        config: object
        model: object
        field: str = "config.teacher"

    plan = Plan(dataclasses.replace(config), config.model())
    object.__setattr__(plan.config, "init_from", str(tmp_path))
    with pytest.raises(ValueError, match=r"config.teacher.init_from: .*fc_norm/scale \(32 of 32\)"):
        load_frozen({"teacher": plan}, 0, print)


def test_what_a_model_does_not_take_may_be_anything(tmp_path):
    """The decoder of a pre-training file, for a classifier that starts from its encoder."""
    config = pretrain()
    params = weights(config)
    params["decoder/norm/scale"][:] = np.nan
    path = tmp_path / "x.safetensors"
    files.save_ours(path, files.Weights(config.name, params, {"tubelet": 2, "patch": 8}))
    target = classifier()
    found, report = initialise(str(path), target.model().shapes(), target)
    assert "decoder/norm/scale" in report.skipped
    kernel = flatten_paths(found)["encoder/patch_embed/kernel"]
    assert kernel.tobytes() == params["encoder/patch_embed/kernel"].tobytes()


def test_what_is_left_out_on_purpose_may_be_infinite(tmp_path):
    """Masks are full of -inf, and a position table that is rebuilt is no weight."""
    golden = small_weights()
    tensors = {f"encoder.{n}": v for n, v in golden.items() if not n.startswith(("head", "fc_n"))}
    tensors |= {f"encoder.norm.{end}": np.ones(4, np.float32) for end in ("weight", "bias")}
    tensors["encoder.pos_embed"] = np.full((1, 8, 4), -np.inf, np.float32)
    save_file(tensors, tmp_path / "x.safetensors")
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 0
    out = tmp_path / "out.safetensors"
    assert main(["import", str(tmp_path / "x.safetensors"), "--out", str(out)]) == 0
    assert not any("pos_embed" in name for name in load_file(out))
