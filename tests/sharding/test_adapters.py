"""Adapters on one device and on meshes of eight: the same losses."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_meshes_give_the_same_losses(command):
    done = command("tests.sharding.adapters_on_meshes", devices=8, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
