"""Every preset is a valid config whose mesh and batch fit its slice."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from internvideo_jax.compile_check.hardware import parse_topology
from internvideo_jax.config import TrainConfig, to_typed
from tests.conftest import ROOT

SPEC = importlib.util.spec_from_file_location("slices", ROOT / "configs/slices.py")
assert SPEC is not None and SPEC.loader is not None
slices = importlib.util.module_from_spec(SPEC)
sys.modules["slices"] = slices
SPEC.loader.exec_module(slices)


@pytest.mark.parametrize("name", slices.PRESETS)
def test_presets(name):
    preset = slices.PRESETS[name]
    config = to_typed(TrainConfig, slices.get_config(f"preset={name}").to_dict())
    chips = int(np.prod(parse_topology(preset.topology)[1]))
    mesh = config.mesh
    assert mesh.data * mesh.fsdp * mesh.tensor == chips
    assert config.data.global_batch % (mesh.data * mesh.fsdp) == 0
    assert name.endswith(f"-{preset.topology.partition(':')[0]}-{chips}")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'pretrain-large-v5e-16'"):
        slices.get_config("preset=pretrain-large-v5e-64")
