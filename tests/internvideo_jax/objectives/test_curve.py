"""100 steps of every objective give the stored losses, so a silent change of numerics is seen."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.internvideo_jax.objectives import curves

pytestmark = pytest.mark.usefixtures("compiled_as_by_users")


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    return {name: np.array(curve) for name, curve in json.loads(curves.STORED.read_text()).items()}


@pytest.mark.parametrize("name", curves.CURVES)
def test_the_losses_are_those_stored(stored, name):
    found = curves.losses(curves.config_of(name))
    np.testing.assert_allclose(found, stored[name], rtol=0, atol=curves.TOLERANCE)


def test_the_tolerance_sees_a_small_change(stored):
    """A learning rate 1 % higher is told apart, by ten times the tolerance."""
    config = curves.config_of("masked_pixels")
    optim = dataclasses.replace(config.optim, lr=1.01 * config.optim.lr)
    found = curves.steps(dataclasses.replace(config, optim=optim))
    pairs = zip(found, stored["masked_pixels"], strict=False)
    assert any(abs(float(one) - other) > 10 * curves.TOLERANCE for one, other in pairs)
