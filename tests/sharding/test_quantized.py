"""Kernels of eight bits on one device and on meshes of eight: the same outputs and losses."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_meshes_give_what_one_device_gives(command):
    done = command("tests.sharding.quantized_on_meshes", devices=8, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
