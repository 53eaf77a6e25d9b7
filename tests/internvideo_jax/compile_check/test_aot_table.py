"""The AOT table: its rows are possible, and what counts as worse."""

from __future__ import annotations

import importlib.util
import json
import math
import sys

import pytest

from internvideo_jax.compile_check.__main__ import parse_mesh
from internvideo_jax.compile_check.hardware import parse_topology
from internvideo_jax.compile_check.length import find_records
from tests.conftest import ROOT

SPEC = importlib.util.spec_from_file_location("aot_table", ROOT / "benchmarks/aot.py")
assert SPEC is not None and SPEC.loader is not None
aot = importlib.util.module_from_spec(SPEC)
sys.modules["aot_table"] = aot
SPEC.loader.exec_module(aot)

FACTS = {
    "topology": "v5e:4x4",
    "chips": 16,
    "mesh": {"data": 8, "fsdp": 2, "tensor": 1},
    "batch": 512,
    "remat": "full",
    "steps": 864,
    "fits": True,
    "memory": {"arguments": 1, "temporaries": 2, "peak": 4 * aot.GIB},
    "model_flops": 2.0,
    "executed_flops": 2.5,
    "wire_bytes": 354e6,
    "seconds": {"compute": 0.03, "HBM": 0.1, "ICI": 0.0018},
    "bound": 0.1,
    "binding": "HBM",
    "cpu_seconds": 51.2,
}


def test_a_row_of_the_table():
    assert aot.line("x", FACTS) == (
        "| x | v5e:4x4 | data=8, fsdp=2 | full | 32 | 4.00 | 1.250 |  | 354 | 30, 100, 1.8 | HBM "
        "| 5120, 24.0 % | 0.001, 0 | 51 |"
    )
    taught = {**FACTS, "frozen_flops": 0.5, "frozen_bytes": aot.GIB // 2}
    assert "| 4.00 | 1.000 | 0.50 GiB, 20 % | 354 |" in aot.line("x", taught)
    unread = {**FACTS, "wire_bytes": None, "seconds": {"compute": 0.03}, "binding": "compute"}
    assert "| unavailable | 30, ?, ? | compute |" in aot.line("x", unread)
    refused = {**FACTS, "fits": False, "memory": None}
    assert "| does not fit |" in aot.line("x", refused)
    assert aot.HEADER.splitlines()[1].count("|") == aot.line("x", FACTS).count("|")


def test_what_is_worse():
    assert aot.compare(FACTS, None) == [] and aot.compare(FACTS, FACTS) == []
    little = {**FACTS, "wire_bytes": 1.01 * 354e6}
    assert aot.compare(little, FACTS) == []
    more = {**FACTS, "wire_bytes": 1.03 * 354e6, "memory": {"peak": 5 * aot.GIB}}
    assert aot.compare(more, FACTS) == ["peak GiB 4.00 -> 5.00", "MB sent 354.00 -> 364.62"]
    assert aot.compare(FACTS, more) == []
    lost = {**FACTS, "fits": False, "memory": None}
    assert aot.compare(lost, FACTS) == ["it does not fit any more"]
    unread = {**FACTS, "wire_bytes": None}
    assert aot.compare(unread, FACTS) == [] and aot.compare(FACTS, unread) == []


@pytest.mark.parametrize("name", aot.ROWS)
def test_rows_are_possible(name):
    row = aot.ROWS[name]
    chips = math.prod(parse_topology(row.topology)[1])
    mesh = parse_mesh(row.mesh, 0)
    split = mesh.fsdp * mesh.tensor * mesh.sequence
    data = chips // split if mesh.data == -1 else mesh.data
    assert data * split == chips
    assert row.batch % (data * mesh.fsdp) == 0
    assert (ROOT / row.config.partition(":")[0]).exists()
    assert find_records(row.records, None)[0] > 0


def test_stored_rows_are_known():
    if aot.STORED.exists():
        stored = json.loads(aot.STORED.read_text())
        assert stored.keys() <= aot.ROWS.keys()
        assert all(aot.line(name, facts) for name, facts in stored.items())
