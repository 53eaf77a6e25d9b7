"""Twenty training steps on every kind of mesh, against one device; all meshes in one process."""

from __future__ import annotations

import pytest


@pytest.mark.slow  # seven and six train steps to compile
@pytest.mark.parametrize("model", ["videomae", "uniformerv2"])
def test_every_mesh_gives_the_losses_of_one_device(program, model):
    code = f"from tests.sharding import losses_on_meshes; losses_on_meshes.{model}()"
    done = program(code, devices=8, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
