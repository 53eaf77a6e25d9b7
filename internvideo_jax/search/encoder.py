"""A video-text model as two functions on the host: clips -> vectors, texts -> vectors."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from internvideo_jax.checkpoint.metadata import params_digest
from internvideo_jax.config import MeshConfig, TrainConfig, as_plain
from internvideo_jax.inference.steps import Batch, Program
from internvideo_jax.inference.texts import Texts, embed_rows
from internvideo_jax.inference.weights import load
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.protocols import Model, ModelConfig, TextInput
from internvideo_jax.types import Params

TEXTS = 16  # per step
MISFIT = (
    "the tokenizer {name!r} has {found} ids, the model reads {vocab}; give the --tokenizer that it "
    "was trained with"
)
LEAST_TEMPERATURE = 0.01  # as the objective clamps it


class SearchEncoder:
    """Both encoders with one shape each, so that each is compiled once, safe to call from threads.

    Args:
      model: has `encode_video` and `encode_text`.
      params: its parameters; `temperature` among them.
      tokenizer: name, as `data_pipelines.text.make_tokenizer` takes it.
      clean: whether texts are cleaned as captions in training.
      clips: per step; fewer are padded.

    Raises:
      ValueError: the model has no text encoder, or the tokenizer another vocabulary.
      RuntimeError: the library behind the tokenizer is not installed.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        tokenizer: str = "clip",
        *,
        clean: bool = False,
        clips: int = 8,
    ):
        self.model, self.clips, reads = model, clips, check_model(model.config)
        try:
            self.ids = Texts.of(reads, tokenizer, clean=clean, misfit=MISFIT)
        except ImportError as error:
            raise RuntimeError(str(error)) from error
        self._params = params
        self._lock = threading.Lock()
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        self._video = Program(
            jax.jit(lambda p, batch: model.apply(p, batch["video"], method="encode_video")), mesh
        )
        self._text = Program(
            jax.jit(lambda p, batch: model.apply(p, batch["text"], method="encode_text")), mesh
        )
        # Of everything beside the pixels that decides an embedding.
        settings = json.dumps(as_plain(model.config), sort_keys=True, default=str)
        self.identity = f"{params_digest(params)} {type(model.config).__name__} {settings}"

    @property
    def digest(self) -> str:
        """Of the parameters."""
        return self.identity.split(" ", 1)[0]

    @property
    def temperature(self) -> float:
        """What cosines are divided by before a softmax over classes."""
        return max(float(np.asarray(self._params["temperature"])), LEAST_TEMPERATURE)

    @property
    def compiled(self) -> int:
        """Programs made so far; at most one per encoder."""
        jitted: list[Any] = [self._video.function, self._text.function]
        return sum(each._cache_size() for each in jitted)

    def warm_up(self) -> None:
        """Compiles the text encoder, so that the first query need not wait."""
        self.text(["a video"])

    def video(self, pixels: np.ndarray) -> np.ndarray:
        """(N, T, size, size, 3) uint8 -> (N, E) float32, not normalised."""
        return self._batched(self._video, "video", pixels, self.clips)

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, E) float32, not normalised."""
        return self._batched(self._text, "text", self.ids.tokenizer(texts), TEXTS)

    def _batched(self, program: Program, part: str, rows: np.ndarray, size: int) -> np.ndarray:
        def start(batch: Batch) -> tuple[dict[str, jax.Array], Any]:
            with self._lock:  # one thread compiles
                return program(self._params, batch)

        return embed_rows(start, part, rows, size)


def check_model(config: ModelConfig) -> TextInput:
    """The texts that a model reads; ValueError for one that cannot compare videos with texts."""
    if config.inputs.text is None:
        raise ValueError(
            f"config.model is {config.name!r}, which reads no text; searching needs a video-text "
            "model such as viclip"
        )
    return config.inputs.text


def open_encoder(
    config: TrainConfig, checkpoint: str, *, tokenizer: str = "", clips: int = 8
) -> SearchEncoder:
    """The encoder of a recipe with the weights of a checkpoint, on the first device.

    Args:
      tokenizer: by default that of the recipe's data, else "clip".
    """
    check_model(config.model)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model, params = load(config, checkpoint, mesh)
    name = tokenizer or config.data.tokenizer or "clip"
    return SearchEncoder(model, params, name, clean=config.data.text_clean, clips=clips)
