"""A video-text model that knows colours: its answers can be told beforehand.

A clip's vector is its mean colour, with what all channels share taken away; a text's is the sum
over its words of a table in which `red`, `green` and `blue` are the three channels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.ingest.rows import Row
from data_pipelines.synthetic import encode_mp4
from data_pipelines.text import make_tokenizer
from internvideo_jax.protocols import ClipInput, Inputs, TextInput
from internvideo_jax.search.cache import EmbeddingCache
from internvideo_jax.search.clips import Sampling, list_videos
from internvideo_jax.search.encoder import SearchEncoder
from internvideo_jax.search.index import VideoIndex, build_index

PALETTE = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
CONTEXT = 16


@dataclasses.dataclass(frozen=True)
class ColourConfig:
    name: str = "colours"
    frames: int = 4
    resolution: int = 16
    context: int = CONTEXT
    vocab: int = 49408
    shift: float = 0.0  # another value makes another model

    @property
    def inputs(self) -> Inputs:
        clip = ClipInput(
            self.frames, self.resolution, (self.frames, 1, 1), 1, self.resolution, (0,), (1,)
        )
        return Inputs(clip, TextInput(self.context, self.vocab))


class ColourModel:
    def __init__(self, config: ColourConfig = ColourConfig()):
        self.config = config

    def params(self) -> dict[str, Any]:
        # Other words say a little, so that every text has a direction.
        rng = np.random.default_rng(0)
        table = rng.normal(0, 0.02, (self.config.vocab, 3)).astype(np.float32)
        tokenizer = make_tokenizer("clip", 3)
        for channel, name in enumerate(PALETTE):
            table[tokenizer([name])[0, 1], channel] = 1.0
        table[0] = 0.0  # padding
        return {"words": table, "temperature": np.float32(0.1)}

    def apply(self, params: Any, x: jax.Array, *, method: str) -> jax.Array:
        if method == "encode_video":
            colour = x.astype(jnp.float32).mean(axis=(1, 2, 3)) / 255
            return colour - colour.mean(axis=1, keepdims=True) + self.config.shift
        return params["words"][x].sum(axis=1)


def colour_encoder(config: ColourConfig = ColourConfig(), clips: int = 2) -> SearchEncoder:
    model = ColourModel(config)
    return SearchEncoder(model, model.params(), clips=clips)


def paint(path: Path, *colours: str, frames: int = 12) -> Path:
    """An H.264 file at 12 frames/s that shows one colour after the other, with some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(colours)).integers(0, 20, (frames, 64, 80, 3))
    parts = [np.broadcast_to(PALETTE[name], noise.shape) + noise for name in colours]
    encode_mp4(path, np.clip(np.concatenate(parts), 0, 255).astype(np.uint8), 12)
    return path


def index_of(
    folder: Path, encoder: SearchEncoder, cache: Path | None = None, **options: Any
) -> tuple[VideoIndex, EmbeddingCache]:
    """The index of a folder as the commands make it."""
    config = encoder.model.config
    sampling = Sampling(config.frames, config.resolution, **options)
    kept = EmbeddingCache(cache, encoder.identity, sampling.identity())
    rows: list[Row] = list_videos(folder)
    return build_index(rows, encoder, sampling, kept), kept
