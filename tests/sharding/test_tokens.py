"""Clips whose tokens are shared out over devices train as on one device."""

from __future__ import annotations

import pytest


@pytest.fixture
def on_eight_devices(program):
    def run(call: str) -> None:
        code = f"from tests.sharding import tokens_on_meshes as on; on.{call}"
        done = program(code, devices=8, timeout=300)
        print(done.stdout)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def test_the_tokens_of_a_clip_are_shared_out(on_eight_devices):
    on_eight_devices("videomae(on.ALL)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "videomae(on.DATA, attention='auto', remat='full')",
        "finetuning()",
        "viclip()",
        "internvideo2()",
        "uniformerv2()",
    ],
)
def test_every_family_trains_as_on_one_device(on_eight_devices, call):
    on_eight_devices(call)
