"""Names of slices: what exists, what is near, and the compiler's refusals in plain words."""

from __future__ import annotations

import importlib.util

import pytest

from internvideo_jax.compile_check.hardware import (
    CHIPS,
    explain,
    offered,
    open_slice,
    parse_topology,
    split_slices,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e:16x16", ("v5e", (16, 16))),
        ("v5p:16x16x24", ("v5p", (16, 16, 24))),
        ("tpu7x:2x2x1", ("tpu7x", (2, 2, 1))),
        ("cpu:8", ("cpu", (8,))),
        ("gpu:h100x8", ("h100", (8,))),
    ],
)
def test_slices_that_exist(name, expected):
    assert parse_topology(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:4x4", "unknown chip 'v5': did you mean"),
        ("v7x:2x2x1", "unknown chip 'v7x': did you mean"),
        ("v5e:4x4x4", r"expected 2 positive numbers after the colon, as in v5e:4x4"),
        ("v4:16", r"expected 3 positive numbers .* v4:2x2x2"),
        ("v5e:4xx", "expected 2 positive"),
        ("cpu:0", "expected 1 positive number after"),
        ("v5e:32x32", "has 1024 chips; the largest v5e slice has 256"),
        ("v5p:16x16x28", "has 7168 chips; the largest v5p slice has 6144"),
        ("v5e:3x5", r"no such slice; the nearest are v5e:4x4 \(16 chips\) and v5e:2x4 \(8 chips\)"),
        ("v5e:8x4", r"no such slice; the nearest is v5e:4x8 \(32 chips\)"),
        ("v5p:3x3x3", r"no such slice; the nearest are v5p:2x4x4 \(32 chips\)"),
        ("v4:8x4x4", r"the nearest is v4:4x4x8"),
        ("gpu:h10x8", r"unknown GPU 'h10': did you mean 'h100'\?.*write gpu:h100x8"),
        ("gpu:h100", "expected 1 positive number after the chip, as in gpu:h100x8"),
    ],
)
def test_slices_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(name)


def test_what_a_pod_is_cut_into():
    for kind, chip in CHIPS.items():
        shapes = offered(kind)
        assert all(len(shape) == chip.rank for shape in shapes)
        assert len(set(shapes)) == len(shapes)
    assert (16, 16) in offered("v6e") and (12, 16, 16) in offered("v4")
    assert (16, 16, 24) in offered("v5p") and (16, 24, 24) not in offered("v5p")


def test_several_slices():
    assert split_slices("v5e:16x16*2") == ("v5e:16x16", 2)
    assert split_slices("v5e:16x16") == ("v5e:16x16", 1)
    for bad, message in (
        ("v5e:4x4*", "number of slices after the star"),
        ("v5e:4x4*0", "number of slices"),
        ("cpu:8*2", "only TPU slices"),
    ):
        with pytest.raises(ValueError, match=message):
            split_slices(bad)


def test_the_compilers_refusals_in_plain_words(monkeypatch):
    locked = RuntimeError(
        'ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm '
        '/tmp/libtpu_lockfile".'
    )
    found = explain("v5e:4x4", locked)
    assert isinstance(found, RuntimeError)
    assert "another process holds the TPU compiler; set ALLOW_MULTIPLE_LIBTPU_LOAD=1" in str(found)
    refused = RuntimeError(
        'INVALID_ARGUMENT: Topology layout "v5p:3x3x3" is not divisible by the given (or default) '
        'chips_per_host_bounds "2x2x1"'
    )
    found = explain("v5p:3x3x3", refused)
    assert isinstance(found, ValueError) and "there is no such slice" in str(found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    found = explain("v5e:4x4", RuntimeError("something new"))
    assert str(found) == "the TPU compiler does not describe v5e:4x4: something new"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = explain("v5e:4x4", RuntimeError("no libtpu.so"))
    assert "pip install 'internvideo-jax[tpu]' (no libtpu.so)" in str(found)
    assert "RuntimeError" in str(explain("v5e:4x4", RuntimeError()))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed: nothing is missing"
)
def test_a_missing_compiler_is_named():
    with pytest.raises(RuntimeError, match=r"pip install 'internvideo-jax\[tpu\]'"):
        open_slice("v5e:2x2")
