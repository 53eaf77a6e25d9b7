"""A part of the batch that neither package knows goes through stream, evaluation and shapes."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, ImageConfig, ReaderConfig, ViewConfig
from data_pipelines.stream.parts.base import Part, Reading, Rows, Spec
from data_pipelines.stream.pipeline import TrainStream
from internvideo_jax import registry
from internvideo_jax.compile_check.aot import batch_shapes
from internvideo_jax.config import MeshConfig, TrainConfig, as_plain, to_typed
from internvideo_jax.evaluators.base import EvalContext, Input
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.parallel.mesh import make_mesh
from tests.data_pipelines.sets import write_set

CLIP = ClipConfig(frames=4, stride=1, resolution=32)
READER = ReaderConfig(threads=2, buffer=2)


@dataclasses.dataclass(frozen=True)
class Rates(Part):
    """`rates` (count,) float32: the frame rate of the record, over and over."""

    count: int = 2
    name: str = "rates"

    def spec(self) -> Spec:
        return {"rates": ((self.count,), np.dtype(np.float32))}

    def fill(self, reading: Reading, out: Rows) -> None:
        out["rates"][:] = reading.record.fps

    def identity(self) -> Mapping[str, Any]:
        return {"count": self.count}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return str(write_set(tmp_path_factory.mktemp("sets") / "a", 6, captions=[("one",)]))


def recipe(shards: str, **data) -> TrainConfig:
    """As the command line makes it: plain values, typed by the registry."""
    config = TrainConfig(PretrainConfig.of_size("tiny", decoder_depth=1), MaskedPixels(), steps=1)
    plain = as_plain(config)
    plain["data"] |= {
        "train": shards, "global_batch": 4, "clip": as_plain(CLIP), "reader": as_plain(READER),
        "parts": {"own": {"name": "rates", "count": 3}}, **data,
    }  # fmt: skip
    return to_typed(TrainConfig, plain)


@pytest.fixture(autouse=True)
def one_line(monkeypatch):
    monkeypatch.setitem(registry.PARTS, "rates", f"{__name__}:Rates")


def test_a_part_of_ones_own_is_one_class_and_one_line(shards):
    config, mesh = recipe(shards), make_mesh(MeshConfig())
    assert config.data.parts == {"own": Rates(3)}
    stream = TrainStream(config.data)
    batch = next(stream)
    stream.close()
    assert (batch["rates"] == 10).all() and stream.identity["parts"] == {"own": {"count": 3}}
    expected = {name: (array.shape, array.dtype) for name, array in batch.items()}
    shapes = batch_shapes(config, mesh)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == expected

    model = types.SimpleNamespace(config=types.SimpleNamespace(frames=4, resolution=32))
    context = EvalContext(model, mesh, config.data, progress=False, params={})
    views = ViewConfig(dataclasses.replace(CLIP, sampling="dense"), batch=4, reader=READER)
    opened = context.open(Input("", "train", views, labelled=False, parts=("own",)))
    outputs = list(context.outputs(opened, "rates", lambda: lambda p, b: b["rates"].sum(1), "test"))
    found = np.concatenate([sums[part["valid"]] for part, sums in outputs])
    assert found.tolist() == [30.0] * 6 and not any("video" in part for part, _ in outputs)
    with pytest.raises(ValueError, match=r"takes 'ows' from the batch: did you mean 'own'\?"):
        context.open(Input("", "train", views, labelled=False, parts=("ows",)))


def test_shapes_are_those_of_every_media_type(shards):
    """Audio, the number of the set and images too: what is compiled is what comes."""
    mixture = {
        "v": {"directory": shards, "weight": 0.5},
        "p": {"directory": shards, "weight": 0.5, "media": "image"},
    }
    image = as_plain(ImageConfig(global_batch=8, resolution=16))
    text = {"text": "first", "tokenizer": "clip", "text_length": 7}
    config = recipe(shards, train="", mixture=mixture, image=image, audio_seconds=0.5, **text)
    mesh = make_mesh(MeshConfig())
    video, image = batch_shapes(config, mesh), batch_shapes(config, mesh, "image")
    assert video["video"].shape == (4, 4, 32, 32, 3) and video["audio"].shape == (4, 8000)
    assert image["video"].shape == (8, 1, 16, 16, 3) and "audio" not in image
    for shapes in (video, image):
        assert shapes["dataset"].dtype == jnp.int32 and shapes["text"].shape[1:] == (7,)
        assert isinstance(shapes["rates"], jax.ShapeDtypeStruct)
