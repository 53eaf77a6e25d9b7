"""With the TPU compiler: `make test-aot`, which has it in an environment of its own.

What two recipes need may not grow beyond what the design was measured to need, and the search and
the AOT table work end to end.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from internvideo_jax.compile_check.hardware import GIB
from tests.conftest import TINY_PRETRAIN

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="needs the TPU compiler, which `make test-aot` installs",
    ),
]
TINY = ("--config=configs/videomae/pretrain.py:size=tiny", *TINY_PRETRAIN)
SMALL = (*TINY, "--config.mesh.shard_above=64", "--fast")


def check(command, folder: Path, *arguments: str) -> dict:
    """Facts of one program that must fit."""
    facts = folder / "facts.json"
    done = command("internvideo_jax.compile_check", *arguments, f"--json={facts}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return {**json.loads(facts.read_text()), "printed": done.stdout}


@pytest.mark.parametrize(
    ("topology", "kind"),
    [("v5e:2x2", "4 x TPU v5e on 1 host"), ("tpu7x:2x2x1", "4 x TPU7x = 8 devices on 1 host")],
)
def test_a_tiny_step_for_a_slice(command, tmp_path, topology, kind):
    found = check(command, tmp_path, *SMALL, f"--topology={topology}", "--mesh=fsdp=2")
    assert kind in found["printed"] and "FITS" in found["printed"]
    assert found["wire_bytes"] > 0 and found["mesh"]["fsdp"] == 2
    assert "2000 steps: at best" in found["printed"]


def test_base_on_sixteen_chips(command, tmp_path):
    """32 clips per chip; the prototype of the design took 5.76 GiB without fused attention."""
    found = check(
        command,
        tmp_path,
        "--config=configs/videomae/pretrain.py:size=base",
        "--topology=v5e:4x4",
        "--batch=512",
        "--records=k400",
        "--fast",
    )
    assert found["memory"]["peak"] < 5.76 * GIB
    # Gradients in bfloat16, once around: nothing else crosses the links.
    assert found["wire_bytes"] == pytest.approx(354e6, rel=0.02)
    assert found["binding"] == "HBM" and found["cpu_seconds"] < 150


def test_a_model_split_over_eight_is_never_whole(command, tmp_path):
    """One matrix of one layer at a time: forward, and again backward."""
    found = check(
        command,
        tmp_path,
        "--config=configs/videomae/finetune.py:size=giant",
        "--topology=v5e:8x16",
        "--mesh=data=16,fsdp=8",
        "--records=k400",
        "--fast",
    )
    total, largest = found["gathered"]
    assert 1.5 < total < 2.6 and largest < 0.02
    assert not found["gathers_everything"] and found["memory"]["peak"] < 15.75 * GIB


def test_the_search_ends_with_flags_that_fit(command, tmp_path):
    cache = tmp_path / "cache.json"
    asked = (
        "internvideo_jax.compile_check",
        *SMALL,
        "--topology=v5e:2x2",
        "--search",
        "--search_compiles=2",
        f"--search_cache={cache}",
    )
    done = command(*asked)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = {line[:13].strip(): line[13:] for line in done.stdout.splitlines()}
    assert "clips/s" in lines["best"] and "chip-hours" in lines["run"]
    known = len(json.loads(cache.read_text()))
    assert 1 <= known <= 2
    again = command(*asked)  # from memory
    assert len(json.loads(cache.read_text())) == known
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    check(command, tmp_path, *SMALL, "--topology=v5e:2x2", *lines["check again"].split())


def test_teachers_in_a_step_for_a_slice(command, tmp_path):
    """Frozen networks are split and counted apart; microbatches compute nothing of them twice."""
    found = check(
        command,
        tmp_path,
        "--config=configs/internvideo2/pretrain.py:size=tiny,teachers=both",
        "--topology=v5e:2x2",
        "--mesh=data=2,fsdp=2",
        "--batch=16",
        "--config.mesh.shard_above=64",
        "--config.objective.clip_teacher.init_from=random",
        "--config.objective.mae_teacher.init_from=random",
        "--config.optim.accumulate=2",
        "--fast",
    )
    line = next(each for each in found["printed"].splitlines() if each.startswith("frozen"))
    millions = [float(n) for n in re.findall(r"([\d.]+) M\b", line)]
    assert len(millions) == 2 and "with the frozen networks" in found["printed"]
    # Halves of float32 parameters, but for the smallest.
    assert found["frozen_bytes"] == pytest.approx(2e6 * sum(millions), rel=0.1)
    assert not found["whole"] and found["microbatches"] == 2
    # What is executed beyond the model: the teachers once, and at most what remat costs.
    trained = found["executed_flops"] - found["frozen_flops"]
    assert found["frozen_flops"] > 0 and 0.95 < trained / found["model_flops"] < 1.5


def test_rounded_products_are_whole_numbers_in_the_program_of_a_chip(program):
    """All of them: forward, and backward where the gradient is rounded."""
    code = """
import dataclasses, re, sys
from internvideo_jax.compile_check.hardware import open_slice
target = open_slice("v5e:2x2")
from internvideo_jax.compile_check.aot import batch_shapes
from internvideo_jax.config import MeshConfig, QuantizationConfig
from internvideo_jax.run.build import build
from internvideo_jax.run.step import make_train_step
from tests.internvideo_jax.run.test_lora import LoraConfig, config_of
for settings in (QuantizationConfig(), QuantizationConfig("int8", backward="rounded")):
    config = dataclasses.replace(config_of(LoraConfig()), mesh=MeshConfig(), quantization=settings)
    run = build(config, records=64, classes=4, devices=target.devices)
    text = make_train_step(run).text(run, batch_shapes(run.config, run.mesh))
    print(len(re.findall(r"= s32\\[[^ ]* (?:convolution|dot)\\(", text)))
"""
    done = program(code)
    assert done.returncode == 0, done.stderr[-3000:]
    in_float, rounded = map(int, done.stdout.split()[-2:])
    # Four kernels in the loop over layers and four in the backward one; the latter go forward anew.
    assert in_float == 0 and rounded >= 8


def test_a_rounded_step_is_counted_at_the_rate_of_its_numbers(command, tmp_path):
    words = (*SMALL, "--topology=v5e:2x2", "--config.quantization.mode=int8")
    found = check(command, tmp_path, *words)
    assert 0 < found["int8_flops"] < found["executed_flops"]
    assert "of the executed are of int8, 2 x the rate of bfloat16" in found["printed"]
    words = (*SMALL, "--topology=v5e:2x2", "--config.quantization.mode=fp8")
    printed = check(command, tmp_path, *words)["printed"]
    assert "of fp8, which TPU v5e has not, or at no published rate: counted as" in printed
