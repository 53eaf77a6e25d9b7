"""Recognition, retrieval and choice on one device, eight devices and two processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.sharding.test_processes import together


def test_eight_devices_give_the_results_of_one(command, shards):
    done = command("tests.sharding.video_text_on_devices", shards, devices=8)
    assert done.returncode == 0, done.stderr[-3000:]
    one, eight = (json.loads(line) for line in done.stdout.splitlines())
    assert eight["metrics"] == one["metrics"]
    for name in ("texts", "videos"):
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-5, atol=1e-6)
    assert one["metrics"]["retrieval"]["texts"] == 20
    assert 0 < one["metrics"]["retrieval"]["t2v_r10"] < 1
    spread = np.ptp(np.array(one["texts"]), axis=0).max()
    assert spread > 1e-2  # texts have embeddings of their own


def arguments(module: str, shards: Path, *more: str) -> list[str]:
    config = "--config=tests/sharding/video_text_config.py"
    return [module, config, f"--config.data.train={shards}", *more]


@pytest.mark.slow
def test_two_processes_in_training_find_what_one_finds_offline(command, shards, tmp_path):
    two, out = tmp_path / "two", tmp_path / "one.json"
    together(arguments("internvideo_jax.train", shards, f"--workdir={two}"), 2)
    rows = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    seen = [row["step"] for row in rows if "eval/retrieval/dsl/t2v_r1" in row]
    assert seen == [2, 4]
    done = command(
        *arguments("internvideo_jax.evaluate", shards, f"--checkpoint={two}", f"--out={out}")
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    offline = json.loads(out.read_text())["results"]
    for name in ("zero_shot", "retrieval", "choice"):
        trained = json.loads((two / f"results/{name}.json").read_text())
        assert trained["metrics"] == offline[name]["metrics"], name
    for folder in (two, tmp_path / "one"):
        assert (folder / "pictures/retrieval-queries.png").exists()
        assert (folder / "pictures/zero_shot-confusion.png").exists()
