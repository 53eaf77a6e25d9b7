"""Meshes, sharding rules and microbatches, on eight virtual devices in a process of their own."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture
def on_eight_devices(program):
    def run(call: str) -> None:
        code = f"from tests.internvideo_jax.parallel import on_eight_devices as run; run.{call}"
        done = program(code, devices=8, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def test_mesh_shapes_and_errors(on_eight_devices):
    on_eight_devices("mesh_shapes_and_errors()")


def test_parameters_and_moments_are_sharded_by_rule(on_eight_devices):
    on_eight_devices("parameters_and_moments_are_sharded_by_rule()")


def test_an_axis_that_does_not_divide_is_named(on_eight_devices):
    on_eight_devices("an_axis_that_does_not_divide_is_named()")


def test_microbatches_give_the_mean_over_the_whole_batch(on_eight_devices):
    on_eight_devices("microbatches_give_the_mean_over_the_whole_batch()")


def test_constrain_is_a_no_op_without_a_mesh_and_pins_with_one(on_eight_devices):
    on_eight_devices("constrain_is_a_no_op_without_a_mesh_and_pins_with_one()")


@pytest.mark.parametrize(
    "mesh",
    [
        "(2, 2, 2)",
        pytest.param("(8, 1, 1)", marks=pytest.mark.slow),
        pytest.param("(2, 4, 1)", marks=pytest.mark.slow),
        pytest.param("(1, 1, 8)", marks=pytest.mark.slow),
    ],
)
def test_model_values_do_not_depend_on_the_mesh(on_eight_devices, mesh):
    on_eight_devices(f"model_values_do_not_depend_on_the_mesh({mesh})")


def test_rules_that_contradict_each_other_or_match_nothing_are_named(on_eight_devices):
    on_eight_devices("rules_that_contradict_each_other_or_match_nothing_are_named()")


def test_a_large_parameter_left_whole_is_an_error_that_proposes_a_mesh(on_eight_devices):
    on_eight_devices("a_large_parameter_left_whole_is_an_error_that_proposes_a_mesh()")


def test_slices_are_joined_along_data(on_eight_devices):
    on_eight_devices("slices_are_joined_along_data()")


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler")
def test_two_described_slices_make_one_mesh(on_eight_devices):
    on_eight_devices("two_described_slices_make_one_mesh()")
