"""UniFormerV2 from the command line: train, evaluate, export."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file

RECIPE = "--config=configs/uniformerv2/finetune.py:size=tiny"
SMALL = (
    "--config.model.encoder.width=32",
    "--config.model.encoder.hidden=64",
    "--config.model.encoder.depth=2",
    "--config.model.encoder.heads=2",
    "--config.model.global_layers=(0,1)",
    "--config.data.reader.threads=2",
)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["full", "frozen"])
def test_three_steps_evaluation_and_export(command, shards, tmp_path, backbone):
    recipe, data = f"{RECIPE},backbone={backbone}", f"--config.data.train={shards}"
    short = ("--config.steps=3", "--config.optim.warmup_steps=1", "--config.log.every=1")
    done = command(
        "internvideo_jax.train", recipe, *SMALL, *short, f"--workdir={tmp_path}/run", data
    )
    assert done.returncode == 0, done.stderr[-3000:]
    inside = json.loads((tmp_path / "run/results/test.json").read_text())
    assert inside["protocol"]["sampling"] == "stepped"
    assert inside["protocol"]["crop_rule"] == "slowfast"
    export = tmp_path / "torch.safetensors"
    done = command("internvideo_jax.weights", "export", tmp_path / "run", "--out", export)
    assert done.returncode == 0, done.stderr
    names = load_file(export)
    assert "transformer.resblocks.1.lmhra2.pos_embed.0.running_var" in names
    assert ("transformer.balance" in names) == (backbone == "full")
    out = tmp_path / "results.json"
    done = command(
        "internvideo_jax.evaluate", recipe, *SMALL, f"--checkpoint={export}", data, f"--out={out}"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads(out.read_text())["results"]["test"]
    assert again["metrics"] == inside["metrics"]
