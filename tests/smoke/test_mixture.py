"""A run on a mixture with repeats, from the command line."""

from __future__ import annotations

import json

import pytest

from tests.conftest import TINY_PRETRAIN
from tests.smoke.conftest import SHORT


@pytest.mark.slow
def test_a_mixture_from_the_command_line(command, shards, tmp_path):
    arguments = (
        "internvideo_jax.train",
        "--config=configs/videomae/pretrain.py:size=tiny",
        *TINY_PRETRAIN,
        *SHORT,
        f"--workdir={tmp_path}/run",
        f"--config.data.eval={shards}",
        "--config.data.repeats=2",
        "--config.log.report=False",
        "--config.evals.reconstruction.views.batch=8",
    )
    mixture = f"--config.data.mixture=x={shards}:3, y={shards}:1; split=test; crop=center"
    done = command(*arguments, mixture)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["step"] == 6 and "train/loss" in row]
    assert row["clips_seen"] == 48 and row["data/x/share"] == 0.75
    assert row["data/y/epochs"] == 12 / 2 / 20

    done = command(*arguments, mixture.replace(":3,", ":2,"), "--config.steps=8")
    assert done.returncode == 2
    assert "fingerprint: found" in done.stderr
    assert "mixture.x.share: found '2/3', the checkpoint has '3/4'" in done.stderr
