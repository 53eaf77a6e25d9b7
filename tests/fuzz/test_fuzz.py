"""A short, seeded run of the fuzz targets; `python tests/fuzz/run.py` runs them for longer."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from data_pipelines.stream import mixture
from internvideo_jax.weights import rules
from tests.fuzz import judge, mutate, run, text_targets, weight_targets

NEEDS_TORCH = ("torch", "pickle")  # to read what is sound; without it they are only checked
ROOMS = {**dict.fromkeys(run.WEIGHTS, weight_targets), **dict.fromkeys(run.TEXTS, text_targets)}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.torch if n in NEEDS_TORCH else ()) for n in ROOMS]
)
def test_damaged_input_ends_in_our_own_errors(name, tmp_path):
    function, seeds = ROOMS[name].targets(tmp_path)[name], ROOMS[name].seeds()[name]
    if name not in NEEDS_TORCH or importlib.util.find_spec("torch"):
        for seed in seeds:
            function(seed)  # the sound ones are read, else nothing would be tried
    refused = 0
    for data in mutate.inputs(seeds, 60 if name in run.WEIGHTS else 150, seed=1):
        try:
            function(data)
        except Exception as error:
            if not judge.is_ours(error):
                raise
            refused += 1
    assert refused > 10


def test_every_target_is_run():
    assert set(weight_targets.seeds()) == set(run.WEIGHTS)
    assert set(text_targets.seeds()) == set(run.TEXTS)


def error_of(function, *arguments) -> Exception:
    with pytest.raises(Exception) as found:
        function(*arguments)
    return found.value


def test_errors_of_libraries_are_told_from_ours():
    assert judge.is_ours(error_of(mixture.parse, "nothing"))
    assert not judge.is_ours(error_of(mixture.parse, 7))  # an attribute that numbers lack
    assert not judge.is_ours(error_of(int, "x"))
    # A ValueError that a library raises under a line of ours is not one of ours.
    assert not judge.is_ours(error_of(rules.QKV.to_ours, np.zeros((5, 3))))
