"""The compile check on CPU devices: what it prints, what it refuses."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from data_pipelines.config import ClipConfig, DataConfig, SetConfig
from internvideo_jax.compile_check import report as reporting
from internvideo_jax.compile_check.__main__ import adjust, parse_mesh, prepare
from internvideo_jax.compile_check.aot import (
    Check,
    Memory,
    asked_for,
    check_step,
    check_steps,
    count_flops,
)
from internvideo_jax.compile_check.hardware import CHIPS, GIB, GPUS, Slice
from internvideo_jax.compile_check.program import Collective, CompiledProgram
from internvideo_jax.compile_check.report import (
    facts_of,
    gathered_shares,
    gathers_everything,
    report,
    row,
)
from internvideo_jax.config import MeshConfig, TrainConfig
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.objectives.several import Several
from internvideo_jax.parallel.mesh import AXES
from tests.conftest import TINY_PRETRAIN
from tests.toy_family.model import ToyConfig
from tests.toy_family.objective import MaskedIds

TOWER = tower(16, 1, 2)
SMALL = {"encoder": TOWER, "frames": 4, "resolution": 16, "patch": 8, "dtype": "float32"}
PRETRAIN = TrainConfig(
    model=PretrainConfig(decoder=TOWER, **SMALL),
    objective=MaskedPixels(mask_ratio=0.5),
    data=DataConfig(global_batch=4, clip=ClipConfig(frames=4, stride=1, resolution=16)),
    epochs=2,
)
FINETUNE = dataclasses.replace(
    PRETRAIN, model=VideoMAEClassifierConfig(**SMALL), objective=Classification(mixup=0, cutmix=0)
)
PROGRAM = CompiledProgram(
    [Collective("all-reduce", 16, "bf16", 18, 354e6), Collective("all-gather", 2, "bf16", 4, 46e6)],
    hbm_bytes=81.9e9,
    cycles=3e8,
    unestimated=4,
    unknown_loops=0,
)
CHECK = Check(
    memory=Memory(2 * GIB, 9 * GIB, 10 * GIB),
    needed=0.0,
    executed=5.91e12,
    model=3.94e12,
    unknown_loops=0,
    program=PROGRAM,
    program_error="",
    lower_seconds=1.0,
    compile_seconds=30.0,
    cpu_seconds=29.0,
    host_bytes=GIB,
)


@pytest.fixture(scope="module")
def v5e() -> Slice:
    """A v5e chip in name; the device behind it is a CPU."""
    return Slice("v5e:1x1", CHIPS["v5e"], tuple(jax.devices()[:1]))


def text(check: Check, target: Slice, records: int = 6000) -> str:
    run = prepare(PRETRAIN, target, records, 0)
    return report(run, target, check, length_known=records > 0)


def test_what_is_printed(v5e):
    found = text(CHECK, v5e)
    for expected in (
        "v5e:1x1: 1 x TPU v5e on 1 host; mesh data 1, fsdp 1, tensor 1",
        "4 clips, 4 per chip; remat none",
        "FITS: peak 10.00 GiB of 15.75 GiB usable; arguments 2.00 GiB, temporaries 9.00 GiB",
        "model 3.94 T per step, executed 5.91 T: 1.500 x",
        "400.0 MB sent per chip and step",
        "all-reduce             18 x over   16 chips, bf16     354.00 MB",
        # 5.91 T at 197 T/s, 81.9 GB at 819 GB/s, 0.4 GB at 200 GB/s
        "compute 30.0 ms, HBM 100.0 ms, ICI 2.0 ms: HBM binds",
        "72 FLOPs per HBM byte (81.9 GB); TPU v5e needs 241",
        "200.0 ms from the compiler's cycles, without 4 kernels",
        "100.0 ms per step, 40 clips/s (40.0 per chip), MFU 20.0 %",
        # 2 epochs of 1500 steps
        "3000 steps: at best 0.00347 days, 0.08333 chip-hours",
        "30.0 s (traced and lowered 1.0 s), 29.0 CPU s, 1.00 GiB of host memory; jax ",
    ):
        assert expected in found, found
    assert "length unknown: give --records" in text(CHECK, v5e, records=0)


def test_what_does_not_fit(v5e):
    full = dataclasses.replace(CHECK, memory=Memory(2 * GIB, 15 * GIB, 16 * GIB))
    assert "DOES NOT FIT: peak 16.00 GiB of 15.75 GiB" in text(full, v5e)
    assert not full.fits(v5e.chip)
    refused = dataclasses.replace(CHECK, memory=None, needed=25.8 * GIB, program=None)
    assert "asks for 25.80 GiB of temporaries of 15.75 GiB usable; use a smaller" in text(
        refused, v5e
    )
    assert not refused.fits(v5e.chip)


def test_a_program_that_cannot_be_read_leaves_two_bounds_open(v5e):
    unread = dataclasses.replace(CHECK, program=None, program_error="RET_CHECK failure")
    found = text(unread, v5e)
    assert "collectives  unavailable: RET_CHECK failure" in found
    assert "compute 30.0 ms: compute binds" in found and "HBM and ICI unknown" in found


def test_the_compilers_refusals():
    text = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (25.80G) exceeds available HBM (15.75G)."
    )
    assert asked_for(text) == 25.8 * GIB
    other = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 900.5M of 15.75G hbm."
    assert asked_for(other) == 900.5 * 2**20
    assert asked_for("INTERNAL: RET_CHECK failure") == 0


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_a_step_compiled_for_the_cpu(config, v5e):
    target = dataclasses.replace(v5e, name="cpu:1", chip=None)
    run = prepare(config, target, 100, classes=7)
    check = check_step(run, target)
    assert check.memory is not None and check.memory.peak > check.memory.arguments > 0
    assert check.arguments == pytest.approx(check.memory.arguments, rel=0.02)
    assert 0.6 < check.executed / check.model < 1.0  # no gradient of the pixels
    assert check.program is not None and check.program.wire_bytes == 0
    found = report(run, target, check, length_known=True)
    assert "CPU: no limit known" in found and "say nothing about the speed of a chip" in found
    assert row(run, target, check)["steps"] == 50


def test_every_media_type_has_a_step_of_its_own(v5e):
    target = dataclasses.replace(v5e, name="cpu:1", chip=None)
    sets = {"talk": SetConfig("t", media="features"), "clips": SetConfig("c")}
    config = TrainConfig(
        model=ToyConfig(encoder=TOWER),
        objective=MaskedIds(),
        data=dataclasses.replace(
            PRETRAIN.data, mixture=sets, text="first", tokenizer="clip", text_length=8
        ),
        steps=5,
    )
    run = prepare(config, target, 0, 0)
    clips, talk = check_steps(run, target)
    assert (clips.media, talk.media) == ("video", "features")
    assert clips.arguments - talk.arguments == 4 * (4 * 16 * 16 * 3)  # of four clips
    facts = facts_of(run, target, (talk, clips))
    assert facts["fits"] and facts["media"]["features"]["arguments"] == talk.arguments
    assert "4 examples of media=features" in report(run, target, talk, length_known=True)
    full = dataclasses.replace(talk, memory=Memory(2 * GIB, 15 * GIB, 16 * GIB))
    facts = facts_of(run, v5e, (full, clips))
    assert not facts["fits"] and facts["memory"]["peak"] == 16 * GIB
    assert "if all were of media=video," in report(
        run, v5e, dataclasses.replace(CHECK, media="video"), length_known=True
    )


@pytest.mark.parametrize("microbatches", [1, 4])
def test_the_counts_of_several_terms_cost_no_pass(v5e, microbatches):
    """The compiler drops the forward pass of which only the counts are read."""
    both = Several(of={"half": MaskedPixels(mask_ratio=0.5), "most": MaskedPixels(mask_ratio=0.75)})
    optim = dataclasses.replace(PRETRAIN.optim, accumulate=microbatches)

    def flops(objective) -> float:
        config = dataclasses.replace(PRETRAIN, objective=objective, optim=optim)
        return count_flops(prepare(config, v5e, 100, 0)).total

    assert flops(both) == flops(both.of["half"]) + flops(both.of["most"])


def test_all_parameters_at_once(v5e, monkeypatch):
    run = prepare(PRETRAIN, v5e, 0, 0)
    split = dataclasses.replace(run, mesh=jax.sharding.AbstractMesh((1, 8, 1), AXES))
    whole = 2 * sum(leaf.size for leaf in jax.tree.leaves(run.plan.shapes.params))
    # A matrix of a layer at a time; a matrix of all layers; the same in a small model.
    for share, limit, bad in ((1 / 36, 1, False), (1 / 3, 1, True), (1 / 3, 2**30, False)):
        monkeypatch.setattr(reporting, "GATHERED_BYTES", limit)
        program = dataclasses.replace(PROGRAM, gathered=2 * whole, gathered_largest=share * whole)
        check = dataclasses.replace(CHECK, program=program)
        assert gathered_shares(split, check) == pytest.approx((2.0, share))
        assert gathers_everything(split, check) is bad
        found = report(split, v5e, check, length_known=False)
        assert f"2.00 x the parameters in bfloat16 per step, the largest {share:.4f} x" in found
        assert ("ERROR: one all-gather holds a good part" in found) is bad
        assert not gathers_everything(run, check)  # nothing is split


def test_two_devices_make_a_chip(v5e):
    target = Slice("tpu7x:2x2x1", CHIPS["tpu7x"], v5e.devices * 8)
    run = prepare(PRETRAIN, v5e, 6000, 0)
    found = report(run, target, CHECK, length_known=True)
    assert "tpu7x:2x2x1: 4 x TPU7x = 8 devices on 1 host" in found
    assert "4 clips, 1 per chip" in found and "MB sent per device and step" in found
    assert "per device" in found and "compiler's cycles" not in found  # no clock is published
    # 22.2 ms on 4 chips for 3000 steps
    assert "HBM 22.2 ms" in found and "0.000771 days, 0.07398 chip-hours" in found


def test_gpus_are_not_compiled_for(v5e):
    target = Slice("gpu:h100x1", GPUS["h100"], v5e.devices)
    run = prepare(PRETRAIN, v5e, 6000, 0)
    check = check_step(run, target)
    assert check.memory is None and check.unknown(target) and not check.fits(target.chip)
    found = report(run, target, check, length_known=True, price=2.5)
    assert "NOT KNOWN: state and batch take" in found and "does not run on a machine" in found
    assert "compute binds" in found and "nothing was compiled" in found
    assert "at 2.5 per chip-hour" in found
    assert check.executed == count_flops(run).total > 0
    tight = dataclasses.replace(target, chip=dataclasses.replace(GPUS["h100"], hbm=1000.0))
    assert not check.unknown(tight)
    assert "DOES NOT FIT: state and batch take" in report(run, tight, check, length_known=True)


def test_mesh_and_other_changes():
    assert parse_mesh("data=4,fsdp=2", 5) == MeshConfig(4, 2, 1, 5)
    assert parse_mesh("fsdp=8", 5) == MeshConfig(-1, 8, 1, 5)
    assert parse_mesh("data=1,sequence=8", 5) == MeshConfig(1, 1, 1, 5, sequence=8)
    for bad, message in (("fsp=2", "did you mean 'fsdp'"), ("data=x", "expected a number")):
        with pytest.raises(ValueError, match=message):
            parse_mesh(bad, 5)
    changed = adjust(PRETRAIN, mesh="fsdp=2", batch=8, remat="full")
    assert (changed.mesh.fsdp, changed.data.global_batch) == (2, 8)
    assert changed.model.remat == "full"
    assert adjust(PRETRAIN) == PRETRAIN


def test_a_mesh_that_does_not_fit_the_slice(v5e):
    with pytest.raises(ValueError, match="multiple of 3 devices, found 1"):
        prepare(adjust(PRETRAIN, mesh="data=3"), v5e, 0, 0)


def test_a_batch_that_does_not_divide(v5e):
    halved = dataclasses.replace(PRETRAIN.optim, accumulate=2)
    with pytest.raises(ValueError, match="batch = 5 cannot be split evenly over 1 devices"):
        prepare(dataclasses.replace(adjust(PRETRAIN, batch=5), optim=halved), v5e, 0, 0)


@pytest.mark.slow
def test_the_command_on_eight_devices(command, tmp_path):
    check = (
        "--config=configs/videomae/pretrain.py:size=tiny",
        *TINY_PRETRAIN,
        "--config.mesh.shard_above=64",
        "--topology=cpu:8",
    )
    facts = tmp_path / "facts.json"
    done = command(
        "internvideo_jax.compile_check",
        *check,
        "--mesh=fsdp=4",
        "--batch=16",
        f"--json={facts}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8 x CPU on 1 host; mesh data 2, fsdp 4, tensor 1" in done.stdout
    assert "all-gather" in done.stdout and "over    4 chips" in done.stdout
    assert json.loads(facts.read_text())["batch"] == 16
