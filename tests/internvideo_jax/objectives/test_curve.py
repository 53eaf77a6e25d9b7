"""100 steps of every objective give the stored losses, so a silent change of numerics is seen.

Each in a process that compiles as users do.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.internvideo_jax.objectives import curves


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    return {name: np.array(curve) for name, curve in json.loads(curves.STORED.read_text()).items()}


@pytest.fixture(scope="module")
def shown(program):
    def show(*arguments: str | float) -> list[float]:
        code = f"from tests.internvideo_jax.objectives import curves; curves.show(*{arguments})"
        done = program(code, fast=False, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return [float(line) for line in done.stdout.splitlines()]

    return show


ALIKE = ("masked_pixels_dual_raw", "classification_mixed")  # as the other of their objective


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else [])
        for name in curves.CURVES
    ],
)
def test_the_losses_are_those_stored(stored, shown, name):
    np.testing.assert_allclose(shown(name), stored[name], rtol=0, atol=curves.TOLERANCE)


def test_the_tolerance_sees_a_small_change(stored, shown):
    """A learning rate 1 % higher is told apart, by ten times the tolerance."""
    found = shown("masked_pixels", 1.01, 10 * curves.TOLERANCE)
    pairs = zip(found, stored["masked_pixels"], strict=False)
    assert any(abs(one - other) > 10 * curves.TOLERANCE for one, other in pairs)
