"""Weights prove themselves by their outputs on a clip that code draws."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax.api import prove
from internvideo_jax.weights import safetensors_files, zoo
from internvideo_jax.weights.__main__ import main
from internvideo_jax.weights.entry import Entry

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FILES = {
    "reference/videomae_finetune_v2": "videomae/finetune_v2_mean",
    "reference/videomae_pretrain_v1": "videomae/pretrain_v1_tube",
    "reference/viclip": "video_language/viclip_full",
}
ONE = "reference/videomae_finetune_v2"


def weights(name: str) -> Path:
    return GOLDEN / FILES[name] / "weights.safetensors"


def test_the_clip_is_the_same_everywhere():
    found = prove.clip(8, 32)
    assert found.shape == (8, 32, 32, 3) and found.dtype == np.uint8
    assert hashlib.sha256(found.tobytes()).hexdigest().startswith("bac0ce2d34847446")
    assert len(np.unique(found.reshape(8, -1), axis=0)) == 8  # every frame is another one


def test_every_stored_proof_holds():
    assert set(prove.stored()) == set(FILES)
    for name in FILES:
        found = prove.prove(str(weights(name)))
        assert found.state == "proved", found.text()


def test_other_weights_are_not_proved_and_print_their_outputs(tmp_path, capsys):
    tensors, _ = safetensors_files.read(weights(ONE))
    tensors["head.bias"] = tensors["head.bias"] + 1
    safetensors_files.write(tmp_path / "other.safetensors", tensors, {"format": "pt"})
    proof = prove.stored()[ONE]
    found = prove.prove(
        str(tmp_path / "other.safetensors"), recipe=proof.recipe, settings=proof.settings
    )
    assert (found.state, "not at hand" in found.why) == ("not proved", True)
    np.testing.assert_allclose(found.outputs, np.array(proof.outputs) + 1, atol=1e-4)
    assert main(["prove", str(weights(ONE))]) == 0
    assert f": proved: outputs of {ONE}, to " in capsys.readouterr().out


def test_a_file_that_does_not_tell_is_given_recipe_and_fields_as_any_command(tmp_path, capsys):
    file, proof = tmp_path / "other.safetensors", prove.stored()[ONE]
    tensors, _ = safetensors_files.read(weights(ONE))
    tensors["head.bias"] = tensors["head.bias"] + 1
    safetensors_files.write(file, tensors, {"format": "pt"})
    fields = [f"--config.{name}={value}" for name, value in proof.settings.items()]
    assert main(["prove", str(file), f"--config={proof.recipe}", *fields]) == 1
    said = capsys.readouterr().out
    assert ": not proved: " in said and f"{proof.outputs[0] + 1:.5g}"[:5] in said
    for words, message in (
        ([], "does not say which recipe it needs"),
        ([f"--config={proof.recipe}", "--config.model.frame=8"], "'frames'"),
        ([f"--config={proof.recipe}", "--config.model.frames"], "expected FIELD=VALUE"),
    ):
        assert main(["prove", str(file), *words]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):  # other commands read no recipe
        main(["inspect", str(file), "--config.model.frames=8"])
    assert "unrecognized arguments: --config.model.frames=8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": [1.0] * prove.COUNT}, "the outputs of some/model are others, by"),
        ({"digest": "0" * 16}, "those of some/model are 0000000000000000"),
    ],
)
def test_a_name_whose_file_is_another_differs(changes, message, monkeypatch, capsys):
    proof = dataclasses.replace(prove.stored()[ONE], **changes)
    entry = Entry(name="some/model", kind="", size="", data="", config="")
    monkeypatch.setattr(prove, "stored", lambda: {"some/model": proof})
    monkeypatch.setattr(zoo, "named", lambda name: entry)
    assert main(["prove", str(weights(ONE))]) == 1
    assert message in capsys.readouterr().out
