"""How many seconds the clips of a test span, as its result says it."""

from __future__ import annotations

import json
from typing import Any

import jax
import pytest

from data_pipelines.clips.seconds import of_views
from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from internvideo_jax.config import MeshConfig
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.run import run_evaluators
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.tasks import Input, Result

VIEWS = ViewConfig(clip=ClipConfig(frames=4, resolution=16, stride=2, sampling="dense"))


class Reads:
    """An evaluator of these inputs, which computes nothing."""

    name = "reads"

    def __init__(self, *sources: Input):
        self.sources = sources

    def inputs(self) -> tuple[Input, ...]:
        return self.sources

    def run(self, context: EvalContext) -> Result:
        return Result({"value": 1.0}, {"split": "none"})


@pytest.mark.parametrize(
    ("parts", "seconds"),
    [
        ([], False),  # reads no split
        ([("text",)], False),  # no pixels of it
        ([("video",)], True),
        ([("video",), ("text",)], True),  # those of the last split that has pixels
    ],
)
def test_only_clips_that_are_looked_at_have_seconds(parts, seconds, shards, tmp_path):
    # Without pixels to look at no set is opened: there is none here.
    data = DataConfig(eval=str(shards) if seconds else "")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    nothing: Any = None
    context = EvalContext(nothing, mesh, data)
    evaluator: Any = Reads(
        *(Input("", "test", VIEWS, labelled=False, parts=each) for each in parts)
    )
    found = run_evaluators({"it": evaluator}, context, {}, folder=tmp_path, provenance={})["it"]
    assert found.metrics == {"value": 1.0} and found.pixels == {}
    assert ("seconds" in found.protocol) == seconds
    stored = json.loads((tmp_path / "results/it.json").read_text())["protocol"]
    assert stored == found.protocol
    if seconds:
        spans = of_views(context.dataset(evaluator.sources[0]).frame_times, VIEWS)
        assert stored["seconds"] == spans.as_plain() and spans.videos == 20
