"""Which part of a batch a process reads: the same where its devices have the same rows."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from internvideo_jax.parallel.mesh import BatchShare, batch_share


def shares(monkeypatch, axes: tuple[int, ...], processes: list[int]) -> list[BatchShare]:
    """Of every process, on a mesh (data, fsdp, sequence, tensor) of devices in this order."""
    devices = np.array([types.SimpleNamespace(process_index=n) for n in processes], object)
    shape = dict(zip(("data", "fsdp", "sequence", "tensor"), axes, strict=True))
    mesh = types.SimpleNamespace(devices=devices.reshape(axes), shape=shape, size=len(processes))
    found = []
    for process in sorted(set(processes)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(batch_share(mesh))
    return found


TWO_EACH = [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ((8, 1, 1, 1), [(0, 4, True), (1, 4, True), (2, 4, True), (3, 4, True)]),
        ((2, 2, 2, 1), [(0, 4, True), (1, 4, True), (2, 4, True), (3, 4, True)]),
        ((2, 1, 4, 1), [(0, 2, True), (0, 2, False), (1, 2, True), (1, 2, False)]),
        ((1, 2, 2, 2), [(0, 2, True), (0, 2, False), (1, 2, True), (1, 2, False)]),
        ((1, 1, 1, 8), [(0, 1, True), (0, 1, False), (0, 1, False), (0, 1, False)]),
    ],
)
def test_processes_whose_devices_have_the_same_rows_read_the_same(monkeypatch, axes, expected):
    found = shares(monkeypatch, axes, TWO_EACH)
    assert found == [BatchShare(*each) for each in expected]


def test_the_order_of_devices_may_be_another(monkeypatch):
    # Two hosts share each row, and each has a part of two rows.
    found = shares(monkeypatch, (4, 1, 2, 1), [0, 1, 0, 1, 2, 3, 2, 3])
    assert [(each.number, each.first) for each in found] == [
        (0, True),
        (0, False),
        (1, True),
        (1, False),
    ]


def test_rows_that_are_the_same_in_part_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="4 devices have the same examples.* a process has 3 "):
        shares(monkeypatch, (3, 1, 4, 1), [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3)
