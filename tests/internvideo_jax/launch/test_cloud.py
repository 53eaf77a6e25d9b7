"""Names of slices where they are rented."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from internvideo_jax.compile_check.hardware import CHIPS
from internvideo_jax.launch.cloud import GENERATIONS, CloudSlice


def test_every_chip_has_a_generation():
    assert GENERATIONS.keys() | {"tpu7x"} == CHIPS.keys()


@pytest.mark.parametrize(
    ("name", "kind", "chips", "vms", "per_vm", "nodes"),
    [
        ("v4:2x2x1", "v4-8", 4, 1, 4, 1),
        ("v4:4x4x8", "v4-256", 128, 32, 4, 32),
        ("v5e:1x1", "v5litepod-1", 1, 1, 1, 1),
        ("v5e:2x2", "v5litepod-4", 4, 1, 4, 1),
        ("v5e:2x4", "v5litepod-8", 8, 1, 8, 2),
        ("v5e:4x4", "v5litepod-16", 16, 4, 4, 4),
        ("v5e:16x16", "v5litepod-256", 256, 64, 4, 64),
        ("v5p:2x2x2", "v5p-16", 8, 2, 4, 2),
        ("v5p:4x8x8", "v5p-512", 256, 64, 4, 64),
        ("v6e:8x16", "v6e-128", 128, 32, 4, 32),
    ],
)
def test_a_slice(name, kind, chips, vms, per_vm, nodes):
    found = CloudSlice(name)
    assert (found.accelerator_type, found.chips, found.vms, found.chips_per_vm, found.nodes) == (
        *(kind, chips, vms, per_vm),
        nodes,
    )
    assert found.topology == name.partition(":")[2]
    assert found.vms * found.chips_per_vm == found.nodes * found.chips_per_node == found.chips


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:4x2", "the nearest is v5e:2x4"),
        ("v5e:4x4x4", "expected 2 positive numbers after the colon"),
        ("v5p:4x4x6", "--slice=v5p:4x4x6: there is no such slice; the nearest are v5p:4x4x"),
        ("v5p:8x4x4", "the nearest is v5p:4x4x8"),
        ("v4:2x2x3", "the nearest are v4:2x2x"),
        ("v9:4x4", "unknown chip 'v9'"),
        ("cpu:8", "known for v4, v5e, v5p, v6e; cpu is for compile_check"),
        ("tpu7x:2x2x1", "known for v4, v5e, v5p, v6e; tpu7x is for compile_check"),
    ],
)
def test_what_is_not_rented(name, message):
    with pytest.raises(ValueError, match=message):
        CloudSlice(name)


def test_the_command_prints_assignments_or_an_error(command):
    module = "internvideo_jax.launch.cloud"
    done = command(module, "v6e:2x4")
    facts = dict(line.split("=") for line in done.stdout.splitlines())
    assert facts == CloudSlice("v6e:2x4").facts()
    assert facts["HOSTS"] == "1" and facts["CHIPS_PER_HOST"] == "8"
    bad = command(module, "v6e:3x3")
    assert (bad.returncode, bad.stdout) == (2, "") and bad.stderr.startswith("error: --slice=v6e")


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("name", ["v4:2x2x4", "v5e:4x4", "v5p:2x2x4", "v6e:4x8"])
def test_the_compiler_sees_as_many_hosts(name):
    """In a process of its own: devices of another platform must not be open."""
    module = "internvideo_jax.compile_check.hardware"
    code = f"from {module} import open_slice; print(open_slice({name!r}).hosts)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == CloudSlice(name).nodes == CloudSlice(name).vms
