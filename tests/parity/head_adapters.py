"""Index lists that make a head for Kinetics-600 or 700 from one for Kinetics-710."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from internvideo_jax.checkpoint.classes import head_rows
from tests.parity.cases import Case, adapter

ROWS = 710


@adapter("internvideo2_stage1", "k710_label_maps")
def k710_label_maps(case: Case) -> None:
    """Each list as a user gives it, as a file named in config.head_rows."""
    kernel = np.random.default_rng(0).standard_normal((8, ROWS))
    for name, index in case.io.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(index.tolist()))
            head = head_rows(str(path), count=ROWS, names=(), wanted=len(index), classes=())
        case.equal(name, head.rows)
        assert not head.absent
        taken = head.take(kernel, np.zeros((8, len(index))))
        for i, row in enumerate(index):
            np.testing.assert_array_equal(taken[:, i], kernel[:, row])
    first = head_rows("first", count=ROWS, names=(), wanted=400, classes=())
    np.testing.assert_array_equal(first.take(kernel, np.zeros((8, 400))), kernel[:, :400])
