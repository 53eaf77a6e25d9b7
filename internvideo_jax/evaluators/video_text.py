"""Embeddings of videos and texts in one space, for tasks that only compare them.

The model has `encode_video` and `encode_text`. Nothing is trained.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np

from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.limits import limited
from data_pipelines.records import schema
from data_pipelines.records.dataset import Dataset
from data_pipelines.text.caption import clean_caption
from internvideo_jax.evaluators.base import EvalContext, Pass, describe_data
from internvideo_jax.inference.steps import Forward, Program
from internvideo_jax.inference.texts import Texts, embed_unique
from internvideo_jax.inference.vectors import gather, mean_of_views, no_direction, unit
from internvideo_jax.parallel.mesh import batch_share
from internvideo_jax.tasks import Input
from internvideo_jax.types import Params

# Texts that a device encodes at a time; fixed, so that one program does and results do not depend
# on the number of devices.
TEXT_TILE = 32
SHOWN = 5  # of a long list in an error

_Value = TypeVar("_Value")


@dataclasses.dataclass(frozen=True)
class VideoTextTask:
    """Settings of every task that compares videos with texts.

    The default views are ViCLIP's: the middle frame of each of T equal parts, the whole frame
    squashed to a square.
    """

    name: str = ""
    every: int = limited(0, least=-1)  # steps; 0 = only at the end, -1 = never
    data: str = ""  # default: the run's
    split: str = ""  # default: test, else val, else train
    views: ViewConfig = ViewConfig(clip=ClipConfig(sampling="uniform"), crop_rule="squash")
    seconds: float = limited(0.0, least=0)  # only so much from the beginning of every clip; 0 = all
    tokenizer: str = ""  # clip | clip:PATH | bert:PATH; empty: the run's, else clip
    clean: bool = True  # texts without case and punctuation (ViCLIP); InternVideo1 does not

    compares_texts: ClassVar[bool] = True

    def inputs(self) -> tuple[Input, ...]:
        """The split whose videos and texts are compared."""
        return (Input(self.data, self.split, self.views, labelled=False, seconds=self.seconds),)

    def check(self, context: EvalContext) -> None:
        """What `inputs` does not say; ValueError before a run's first step."""
        self.text_encoder(context)

    def text_encoder(self, context: EvalContext) -> TextEncoder:
        """Raises ValueError for a model without texts, or a tokenizer of another vocabulary."""
        config = context.model.config
        if config.inputs.text is None:
            raise ValueError(
                f"the evaluator {self.name!r} compares videos with texts, and config.model is "
                f"{config.name!r}, which reads none; take a model such as viclip"
            )
        name = self.tokenizer or context.data.tokenizer or "clip"
        ids = Texts.of(config.inputs.text, name, clean=self.clean)
        return TextEncoder(ids.tokenizer, ids.longer, context)

    def protocol(self, videos: Videos, texts: TextEncoder) -> dict[str, Any]:
        """What says how the embeddings were made."""
        return {
            **describe_data(videos.dataset, self.views),
            "seconds": self.seconds,
            "tokenizer": texts.tokenizer.identity,
            "text_length": texts.tokenizer.length,
            "clean": self.clean,
            "unreadable": videos.unreadable,
        }

    def is_empty(self, text: str) -> bool:
        """Whether nothing is left of a text."""
        return not (clean_caption(text) if self.clean else text).strip()


@dataclasses.dataclass(frozen=True)
class TextEncoder(Texts):
    """Texts as ids, and the model's text encoder."""

    context: EvalContext

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, E) float32 embeddings as the model gives them; equal ids have equal ones.

        Raises:
          ValueError: an embedding that has no direction; names the first such text.
        """
        found = self.raw(texts)
        bad = np.flatnonzero(no_direction(found))
        if len(bad):
            raise ValueError(
                f"the embedding of the text {texts[bad[0]]!r} is zero or not finite, as are those "
                f"of {len(bad)} of {len(texts)} texts: the checkpoint's text encoder is broken"
            )
        return found

    def raw(self, texts: Sequence[str]) -> np.ndarray:
        """As a call, whatever the embeddings are."""
        context, model = self.context, self.context.model

        def build() -> Forward:
            return lambda params, batch: model.apply(params, batch["text"], method="encode_text")

        program = Program(context.compiled("encode_text", build), context.mesh)
        return embed_unique(
            functools.partial(program, context.params),
            self.tokenizer(texts),
            TEXT_TILE * context.shards(),
            batch_share(context.mesh),
        )


@dataclasses.dataclass(frozen=True)
class Videos:
    """Embedded videos of a split, in the order of its records.

    Attributes:
      record: (V,) record numbers.
      label: (V,) class, -1 without.
      values: (V, E) float32, of length 1; where a video has several views, the mean of theirs,
        brought to length 1 again.
      unreadable: records left out.
    """

    dataset: Dataset
    record: np.ndarray
    label: np.ndarray
    values: np.ndarray
    unreadable: int

    def records(self, read: Callable[[schema.Record], _Value], threads: int) -> list[_Value]:
        """`read` of the record of every video, without its pictures."""

        def one(number: int) -> _Value:
            return read(self.dataset.load(number))

        with ThreadPoolExecutor(max(threads, 1)) as pool:
            return list(pool.map(one, self.record.tolist()))

    def name(self, video: int) -> str:
        """The id of a video's record, or its number where it has none."""
        number = int(self.record[video])
        return self.dataset.load(number).media_id or f"record {number}"


def embed_videos(context: EvalContext, source: Input, title: str) -> Videos:
    """Raises ValueError for an embedding that has no direction; names the first such record."""
    stream = context.open(source)
    rows = gather(embeddings(context, stream, title)).sorted()
    record, values = rows.record, rows.values.astype(np.float32)
    if not len(record):
        raise ValueError(
            f"no record of split {stream.dataset.split!r} of {stream.dataset.manifest.directory} "
            "can be read"
        )
    if (bad := no_direction(values)).any():
        number = int(record[np.argmax(bad)])
        address = stream.dataset.address(number, stream.dataset.load(number))
        raise ValueError(
            f"{address}: the embedding of this video is zero or not finite, as are those of "
            f"{len(np.unique(record[bad]))} of {len(np.unique(record))} videos: the checkpoint's "
            "video encoder or the record is broken"
        )
    videos, begin, mean = mean_of_views(record, values)
    if (bad := no_direction(mean)).any():
        raise ValueError(
            f"record {videos[np.argmax(bad)]}: the embeddings of its views cancel each other"
        )
    return Videos(stream.dataset, videos, rows.label[begin], unit(mean), stream.skipped)


def embeddings(
    context: EvalContext, stream: Pass, title: str
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """(batch without video, (B, E) embeddings) of the clips of a pass, step by step."""
    model = context.model

    def build() -> Forward:
        return lambda params, batch: model.apply(params, batch["video"], method="encode_video")

    return context.outputs(stream, "encode_video", build, title)


def logit_scale(params: Params | None, wanted: float) -> float:
    """`wanted`, or for 0 what the model multiplies cosines by: 1 / temperature.

    Raises:
      ValueError: no finite number, or 0 and a model without a usable parameter `temperature`.
    """
    if wanted:
        if not np.isfinite(wanted):
            raise ValueError(f"scale = {wanted}: expected a finite number")
        return wanted
    if not params or "temperature" not in params:
        raise ValueError(
            "scale = 0 takes 1 / temperature of the model, which has none; give the number that "
            "cosines are multiplied by"
        )
    temperature = float(np.asarray(jax.device_get(params["temperature"])))
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"the model's temperature is {temperature}: expected a positive number; give the scale"
        )
    return 1.0 / temperature


def first_captions(dataset: Dataset) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(record number, captions) of the records that have any."""
    for number in map(int, dataset.used):
        if captions := tuple(dataset.load(number).captions):
            yield number, captions


def some(names: Sequence[Any]) -> str:
    """`'a', 'b' and 7 more`."""
    rest = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {rest} more" if rest > 0 else "")
