"""The search: with a compiler that follows a known law it must find the best, in few compiles."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import pytest

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.compile_check import candidates
from internvideo_jax.compile_check.__main__ import prepare
from internvideo_jax.compile_check.aot import argument_bytes
from internvideo_jax.compile_check.hardware import CHIPS, Slice
from internvideo_jax.compile_check.mesh_search import (
    Candidate,
    meshes,
    place,
    policies,
    search,
    single,
    table,
)
from internvideo_jax.compile_check.search_cache import CompileCache, key_of, passed_on
from internvideo_jax.config import TrainConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from tests.internvideo_jax import small

CONFIG = TrainConfig(
    model=PretrainConfig(
        encoder=tower(256, 4, 4),
        decoder=tower(128, 1, 4),
        **small.clip(resolution=32),
    ),
    objective=MaskedPixels(mask_ratio=0.5),
    data=DataConfig(global_batch=64, clip=ClipConfig(frames=4, stride=1, resolution=32)),
    steps=100,
)
FLOPS = {"none": 3e9, "dots": 3.3e9, "full": 4e9}
SLOPE = {"none": 4e6, "dots": 2e6, "full": 0.5e6}  # bytes of activations per clip


@pytest.fixture(scope="module")
def run():
    one = Slice("cpu:1", None, tuple(jax.devices()[:1]))
    return prepare(single(CONFIG), one, 0, 0)


def target(hbm: float) -> Slice:
    chip = dataclasses.replace(CHIPS["v5e"], hbm=hbm)
    return Slice("v5e:2x4", chip, (None,) * 8)


class Law:
    """A compiler whose programs follow the estimates' form with numbers the search cannot see."""

    def __init__(self, run, chip):
        self.run, self.chip, self.asked = run, chip, []

    def __call__(self, candidate: Candidate) -> dict:
        self.asked.append(candidate)
        return self.facts(candidate)

    def facts(self, candidate: Candidate) -> dict:
        _, here = place(self.run, candidate.mesh)
        clips = candidate.rows * candidate.microbatches
        temporaries = 1.2 * here.gradients + SLOPE[candidate.remat] * candidate.rows
        if candidate.microbatches > 1:
            temporaries += here.gradients
        peak = here.state + temporaries + clips * 4 * 32 * 32 * 3
        traffic = 6 * here.state + 3e7 * clips
        seconds = {
            "compute": FLOPS[candidate.remat] * candidate.batch / 8 / self.chip.flops,
            "HBM": traffic / self.chip.hbm_rate,
            "ICI": 1e-6 * candidate.fsdp * candidate.microbatches + 1e-5 * (candidate.tensor - 1),
        }
        fits = peak <= self.chip.hbm
        memory = {"arguments": here.state, "temporaries": temporaries, "peak": peak}
        return {
            "fits": fits,
            "memory": memory if fits else None,
            "needed": 0.0 if fits else temporaries,
            "hbm_bytes": traffic if fits else None,
            "whole": [],
            "gathers_everything": False,
            **({"seconds": seconds, "bound": max(seconds.values())} if fits else {}),
        }


def fastest(law: Law, batches: list[int], microbatches: tuple[int, ...]) -> float:
    """Least seconds per clip of all that fits."""
    every = [
        (batch, law.facts(Candidate(*sizes, remat, micro, batch)))
        for sizes in meshes(8, [4])
        for remat in FLOPS
        for batch in batches
        for micro in microbatches
        if batch % (sizes[0] * sizes[1] * micro) == 0
    ]
    return min(facts["bound"] / batch for batch, facts in every if facts["fits"])


@pytest.mark.parametrize("hbm", [30e6, 60e6, 300e6])
def test_the_best_is_found(run, hbm):
    slice_ = target(hbm)
    law = Law(run, slice_.chip)
    found = search(run, slice_, law, flops=FLOPS, batches=[64], compiles=8)
    assert found.best is not None
    assert len(law.asked) == len(found.tried) <= 8
    assert found.best.facts["bound"] / 64 <= 1.05 * fastest(law, [64], (1, 2, 4, 8))
    printed = table(found)
    assert "best" in printed and "not compiled" in printed


def test_nothing_fits(run):
    slice_ = target(2e6)
    law = Law(run, slice_.chip)
    found = search(run, slice_, law, flops=FLOPS, batches=[64])
    assert found.best is None and not law.asked
    assert found.rejected["parameters and optimizer alone do not fit"] > 0


def test_the_batch_can_be_free(run):
    slice_ = target(60e6)
    law = Law(run, slice_.chip)
    batches = [8, 16, 32, 64, 128, 256]
    best = search(run, slice_, law, flops=FLOPS, batches=batches).best
    assert best is not None and best.candidate.microbatches == 1
    assert best.facts["bound"] / best.candidate.batch <= 1.05 * fastest(law, batches, (1,))


def test_a_batch_that_does_not_divide_is_rejected_with_its_reason(run):
    law = Law(run, target(300e6).chip)
    found = search(run, target(300e6), law, flops=FLOPS, batches=[3])
    assert found.best is None
    assert found.rejected["the batch cannot be split evenly"] > 0


def test_a_program_that_gathers_everything_is_not_the_best(run):
    slice_ = target(300e6)
    law = Law(run, slice_.chip)

    def compile_one(candidate):
        return {**law(candidate), "gathers_everything": candidate.fsdp > 1}

    found = search(run, slice_, compile_one, flops=FLOPS, batches=[64])
    assert found.best is not None and found.best.candidate.fsdp == 1


def test_only_slices_can_be_searched(run):
    with pytest.raises(ValueError, match="needs a TPU slice to compile for, found cpu:1"):
        one = Slice("cpu:1", None, tuple(jax.devices()[:1]))
        search(run, one, lambda _: {}, flops=FLOPS, batches=[64])


def test_the_state_on_a_device_is_exact(run):
    moved, here = place(run, (2, 4, 1))
    clip = 4 * 32 * 32 * 3 + 3 * 4
    counters = 2 * 4  # step and skipped steps
    assert math.isclose(here.state + counters + 64 / 8 * clip, argument_bytes(moved), rel_tol=1e-6)
    _, whole = place(run, (8, 1, 1))
    assert here.state < whole.state / 3


def test_flops_of_every_policy_the_model_knows(run):
    found = policies(run)
    assert {"none", "dots", "full"} <= found.keys()
    assert found["none"] < found["dots"] <= found["full"]


def test_meshes_respect_heads():
    found = list(meshes(8, [6, 4]))
    assert (8, 1, 1) in found and (1, 4, 2) in found
    assert all(tensor in (1, 2) for *_, tensor in found)


def test_long_clips_are_shared_out_where_there_are_fewer_than_devices(run, monkeypatch):
    assert all(len(sizes) == 3 for sizes in meshes(8, [4], 2047))
    assert {sizes[3:] for sizes in meshes(8, [4], 4096)} == {(), (2,), (4,)}
    monkeypatch.setattr(candidates, "LONG", 1)
    monkeypatch.setattr(candidates, "TENSOR", (1,))
    slice_ = target(300e6)
    found = search(run, slice_, Law(run, slice_.chip), flops=FLOPS, batches=[2], compiles=30)
    assert found.best is not None
    best = found.best.candidate
    assert best.sequence > 1 and best.rows == 1
    assert f"sequence={best.sequence}" in best.flags()[0]
    assert f"--config.mesh.sequence={best.sequence}" in best.training_flags()
    assert "data,fsdp,tensor,sequence" in table(found)


def test_what_a_candidates_process_is_given():
    line = [
        "--config=a.py:size=base",
        "--topology",
        "v5e:4x4",
        "--search",
        "--search_compiles=3",
        "--search_cache",
        "x.json",
        "--mesh=data=4",
        "--json",
        "out.json",
        "--fast",
        "--config.optim.accumulate=2",
    ]
    assert passed_on(line) == [
        "--config=a.py:size=base",
        "--topology",
        "v5e:4x4",
        "--fast",
        "--config.optim.accumulate=2",
    ]


def test_compiled_programs_are_remembered(tmp_path):
    path = tmp_path / "deep" / "cache.json"
    key = key_of(CONFIG, "v5e:4x4", 400, fast=True)
    other = dataclasses.replace(CONFIG, seed=1)
    assert key != key_of(other, "v5e:4x4", 400, fast=True)
    assert key != key_of(CONFIG, "v5e:4x8", 400, fast=True)
    CompileCache(path).put(key, {"fits": True})
    assert CompileCache(path).get(key) == {"fits": True}
    assert CompileCache(path).get("other") is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    written = path.read_text()
    other = (json.dumps({key: {"fits": True}}), json.dumps({key: 3}), "", "{", "[]", "7")
    for damage in (*other, "[" * 10**5, written.replace("true", "false"), written[:-9]):
        path.write_text(damage)
        assert CompileCache(path).get(key) is None, damage[:80]
    path.write_bytes(b"\xff")
    CompileCache(path).put(key, {"fits": True})
    assert path.read_text() == written
