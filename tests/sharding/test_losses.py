"""Terms with counts of their own: exact on any mesh, in any number of microbatches."""

from __future__ import annotations

import jax
import numpy as np

from tests.sharding import three_terms


def test_terms_are_divided_by_their_own_counts():
    """Against float64 by hand, in the first step."""
    run = three_terms.built(1, (1, 1, 1))
    params = jax.device_get(three_terms.init_state(run).params)
    found, _ = three_terms.trained(4, (1, 1, 1))
    for name, value in three_terms.expected(0, params).items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_three_counts_are_exact_in_microbatches_and_on_eight_devices(program):
    done = program("from tests.sharding import three_terms; three_terms.main()", devices=8)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("\n") == 4
