"""Recognition, retrieval and choice on one device, eight devices and two processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.sharding.test_processes import together

SCRIPT = """
import dataclasses, json, sys
import jax, numpy as np
from internvideo_jax.config import MeshConfig
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.video_text import embed_videos
from internvideo_jax.parallel.mesh import make_mesh
from tests.sharding.video_text_config import typed

config = typed()
model = config.model.model()
params = jax.jit(model.init)(jax.random.key(0))
params = jax.tree.map(lambda leaf: np.asarray(leaf), params)
data = dataclasses.replace(config.data, eval=sys.argv[1])
for mesh, count in ((MeshConfig(), 1), (MeshConfig(4, 2, 1), 8)):
    context = EvalContext(model, make_mesh(mesh, jax.devices()[:count]), data, progress=False)
    context.params = params
    found = {name: dict(task.run(context).metrics) for name, task in config.evals.items()}
    task = config.evals["retrieval"]
    texts = task.text_encoder(context)([f"a text {n}" for n in range(300)])
    videos = embed_videos(context, *task.inputs(), title="")
    print(json.dumps({"metrics": found, "texts": texts.tolist(), "videos": videos.values.tolist()}))
"""


def test_eight_devices_give_the_results_of_one(program, shards):
    done = program(SCRIPT, shards, devices=8)
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
