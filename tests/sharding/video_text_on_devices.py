"""The video-text tasks on one device and on eight, as a line of JSON each; argument: the set."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import numpy as np

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
