"""A model in Python: videos and texts in, numpy arrays out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.stream.item_views import ItemViews
from internvideo_jax.api.videos import Videos, once, open_videos
from internvideo_jax.checkpoint.classes import HEAD
from internvideo_jax.checkpoint.initial import InitialWeights, load_source
from internvideo_jax.checkpoint.metadata import params_digest
from internvideo_jax.config import MeshConfig, TrainConfig
from internvideo_jax.evaluators import metrics
from internvideo_jax.evaluators.base import EvalContext, Pass
from internvideo_jax.evaluators.classification import Accuracy, forward
from internvideo_jax.evaluators.published import templates
from internvideo_jax.evaluators.reconstruction import Reconstruction
from internvideo_jax.evaluators.video_text import (
    TextEncoder,
    VideoTextTask,
    embeddings,
    logit_scale,
)
from internvideo_jax.inference.features import pooled
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.inference.steps import Forward
from internvideo_jax.inference.vectors import Rows, gather, mean_of_views, no_direction, unit
from internvideo_jax.inference.weights import load as load_weights
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.protocols import Device, clip_of
from internvideo_jax.run.build import with_classes
from internvideo_jax.types import Params

UNREADABLE = ("raise", "nan")
BROKEN = (
    "the model gives values that are not finite, so there is nothing to {}: the checkpoint is "
    "broken"
)


class Classified(NamedTuple):
    """Which class each video shows.

    Attributes:
      labels: K names.
      scores: (N, K) float64, rows add to 1; NaN for a video that cannot be used.
    """

    labels: tuple[str, ...]
    scores: np.ndarray

    def top(self, count: int = 1) -> list[list[tuple[str, float]]]:
        """For every video its likeliest labels with their scores, the best first."""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :count]
        return [
            [(self.labels[n], float(scores[n])) for n in numbers]
            for scores, numbers in zip(self.scores, order, strict=True)
        ]


class Reconstructed(NamedTuple):
    """What a masked autoencoder makes of clips.

    Attributes:
      original, masked, rebuilt: (N, T, H, W, 3) uint8: what the model was shown, hidden parts grey,
        hidden parts as predicted.
      loss: (N,) float32 on the hidden parts.
    """

    original: np.ndarray
    masked: np.ndarray
    rebuilt: np.ndarray
    loss: np.ndarray


class VideoModel:
    """A model with its parameters on the devices; `internvideo_jax.load` makes one.

    Videos are one or many: paths of files, folders or lists, or uint8 arrays (frames, H, W, 3) or
    (videos, frames, H, W, 3) with red first. Results have a row for every video, in their order.
    A video file is looked at as the recipe's own test does; an array with exactly the model's
    frames is a clip and taken whole (docs/python.md).

    Args:
      config: what the weights were trained with.
      checkpoint: run, checkpoint or weight file.
      labels: names of the classes of its head; empty: those that the checkpoint has.
      devices: they share every batch; default: the first one.
      threads: videos decoded at a time.
      progress: a bar, on a terminal.
      source: what the checkpoint holds, where it was read before.

    Attributes:
      params: nested dict of arrays.
      labels: of its head; empty: it has none, or the weights lack it.

    Raises:
      ValueError: weights that do not fit the config, or labels that do not fit the weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        checkpoint: str,
        *,
        labels: Sequence[str] = (),
        devices: Sequence[Device] = (),
        threads: int = 2,
        progress: bool = True,
        source: InitialWeights | None = None,
    ):
        source = source or load_source(checkpoint)
        names, config = _classes(config, checkpoint, labels, source)
        self.config, self.labels, self.threads, self.checkpoint = config, names, threads, checkpoint
        mesh = make_mesh(MeshConfig(), list(devices) or jax.devices()[:1])
        model, params = load_weights(config, checkpoint, mesh, source)
        self.params: Params = params
        self.context = EvalContext(
            model, mesh, config.data, config.seed, progress=progress, params=params
        )

    def __repr__(self) -> str:
        clip = clip_of(self.config.model)
        return (
            f"<VideoModel {self.config.model.name} from {self.checkpoint}: {clip.frames} frames of "
            f"{clip.resolution} pixels>"
        )

    @property
    def frames(self) -> int:
        """Of a clip."""
        return clip_of(self.config.model).frames

    @property
    def resolution(self) -> int:
        """Height and width of a clip in pixels."""
        return clip_of(self.config.model).resolution

    @functools.cached_property
    def digest(self) -> str:
        """Of the parameters, as runs, results and search pages show it."""
        return params_digest(self.params)

    @property
    def nbytes(self) -> int:
        """That the parameters take, over all devices together where these share them."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    @property
    def seen(self) -> PixelDigest:
        """The pixels that the last call showed the model: `seen.hex`, `seen.clips`; two calls with
        equal digests saw the same."""
        return self.context.seen

    @property
    def reads_text(self) -> bool:
        """Whether it compares videos with texts."""
        return self.config.model.inputs.text is not None

    def embed(self, videos: Videos, *, pool: str = "", unreadable: str = "raise") -> np.ndarray:
        """Vectors (N, D) float32.

        Args:
          pool: "mean" of the encoder's tokens, or "head": what enters a classifier's head. Empty:
            of a model that reads texts the vector in their common space, of length 1, so that
            `model.embed(videos) @ model.text(texts).T` are cosines; of others the mean.
          unreadable: "raise" ValueError at the first file that cannot be used, or leave a row of
            "nan".

        Raises:
          ValueError: nothing to embed, a file that is no video, a pool that the model lacks.
        """
        self._pooling(pool)  # what the model lacks shows before a file is opened
        return self.embed_views(self._open(videos, self.embed_config(pool), unreadable), pool)

    def embed_config(self, pool: str = "") -> ViewConfig:
        """Which views of a video `embed` looks at."""
        views = self.views(text=self.reads_text)[0]
        return views if self.reads_text and not pool else once(views)

    def embed_views(self, stream: ItemViews, pool: str = "") -> np.ndarray:
        """As `embed`, of videos that are opened, in the views of `embed_config`."""
        self.context.look_anew()
        function = self._pooling(pool)
        if function is None:
            rows = gather(embeddings(self.context, stream, "embed")).sorted()
            return self._by_video(stream, *self._common(rows)[::2])
        key = "pooled", pool or "mean"
        outputs = self.context.outputs(stream, key, lambda: function, "embed")
        rows = gather(outputs)
        self._check_finite(rows.values, "embed")
        return self._by_video(stream, rows.record, rows.values)

    def _pooling(self, pool: str) -> Forward | None:
        """What gives a vector of tokens; None: the vector in the space of videos and texts."""
        if self.reads_text and not pool:
            return None
        if self.config.model.traits.features is None:
            raise ValueError(
                f"{self.config.model.name} gives no features, only what it is made for"
            )
        return pooled(self.context.model, pool or "mean")

    def text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Vectors (N, D) float32 of length 1, in one space with those of `embed`.

        Texts are cleaned as the captions that the model was trained with; what is longer than its
        context is cut.

        Raises:
          ValueError: the model reads no text, or a text says nothing.
          ImportError: the tokenizer's library is missing (extra `text`).
        """
        encoder = self._text
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if self._task.is_empty(text):
                raise ValueError(f"the text {text!r} is empty, or nothing is left after cleaning")
        return unit(encoder(texts))

    def classify(
        self,
        videos: Videos,
        labels: Sequence[str] = (),
        *,
        template: str = "plain",
        unreadable: str = "raise",
    ) -> Classified:
        """Scores of classes: of the model's head, or of `labels` where it reads texts.

        Args:
          labels: names of the classes. A model that reads texts needs them; to one with a head
            they only give names.
          template: prompts that the names are put into: plain, kinetics28, actionclip16.
          unreadable: as in `embed`.

        Raises:
          ValueError: neither a head nor texts; labels that do not fit; a file that is no video.
        """
        names = tuple(labels) or self.labels
        if not names:
            raise ValueError(self._no_classes())
        if not self.reads_text and len(names) != len(self.labels):
            raise ValueError(f"{len(names)} labels for the {len(self.labels)} classes of the head")
        views = self.views(text=self.reads_text)[0]
        stream = self._open(videos, views, unreadable)
        self.context.look_anew()
        record, scores = self.scores(stream, names, template)
        return Classified(names, self._by_video(stream, record, scores))

    def reconstruct(self, videos: Videos, *, mask_ratio: float = 0.0) -> Reconstructed:
        """What a masked autoencoder makes of clips of which it sees a small part.

        Args:
          mask_ratio: share that is hidden; 0: as its recipe has it. Which parts are hidden depends
            on the place of a video among those given, and on the recipe's seed.

        Raises:
          ValueError: the model has no decoder of pixels; a file that is no video.
        """
        traits = self.config.model.traits
        if "decoder" not in traits.stacks or traits.student is not None:
            raise ValueError(
                f"{self.config.model.name} reconstructs no pixels; take a masked autoencoder, such "
                "as a run of configs/videomae/pretrain.py"
            )
        tasks = (each for each in self.config.evals.values() if isinstance(each, Reconstruction))
        task = next(tasks, Reconstruction(views=self.views(text=False)[0]))
        if mask_ratio:
            task = dataclasses.replace(task, mask_ratio=mask_ratio)
        task.check(self.context)
        stream = self._open(videos, once(self._fitted(task.views)), "raise")
        self.context.look_anew()
        key, build = ("reconstruct", task.mask, task.mask_ratio), lambda: task.forward(self.context)
        parts: dict[str, list[np.ndarray]] = {}
        for batch, made in self.context.outputs(stream, key, build, "reconstruct"):
            for name, values in made.items():
                parts.setdefault(name, []).append(values[batch["valid"]])
        found = {name: np.concatenate(values) for name, values in parts.items()}
        self._check_finite(found["error"], "reconstruct")
        return Reconstructed(found["original"], found["masked"], found["rebuilt"], found["error"])

    def views(self, *, text: bool) -> tuple[ViewConfig, str]:
        """How videos are looked at, and how their views are merged: as the config's test does."""
        for found in self.config.evals.values():
            if not text and isinstance(found, Accuracy):
                return self._fitted(found.views), found.merge
            if text and isinstance(found, VideoTextTask):
                return self._fitted(found.views), ""
        if text:
            return self._fitted(VideoTextTask().views), ""
        return self._fitted(ViewConfig(clip=ClipConfig(sampling="stepped"))), "probability"

    def _fitted(self, views: ViewConfig) -> ViewConfig:
        """The same of clips as the model takes them."""
        clip = dataclasses.replace(views.clip, frames=self.frames, resolution=self.resolution)
        return dataclasses.replace(views, clip=clip)

    def scores(
        self, stream: Pass, labels: Sequence[str], template: str = "plain"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(V,) numbers of the videos that can be used, ascending, and (V, K) scores of a pass."""
        if self.reads_text:
            text = self._text(self._prompts(labels, template))
            rows = gather(embeddings(self.context, stream, "classify"))
        else:
            build = functools.partial(forward, self.context.model.apply)
            rows = gather(self.context.outputs(stream, "logits", build, "classify"))
        if not len(rows):
            return rows.record, np.zeros((0, len(labels)))
        self._check_finite(rows.values, "rank")
        if not self.reads_text:
            merge = self.views(text=False)[1]
            record, scores = metrics.merge_views(rows.record, rows.view, rows.values, merge)
            if merge == "logit":
                scores = metrics.softmax(scores)
            elif merge == "probability_sum":
                scores /= scores.sum(axis=1, keepdims=True)
            return record, scores
        record, mean, _ = self._common(rows.sorted())
        text = text.reshape(len(labels), -1, mean.shape[1])
        scale = logit_scale(self.params, 0.0)
        return record, metrics.softmax(scale * templates.class_scores(mean, text))

    @property
    def tokenizer_identity(self) -> str:
        """What decides the ids of texts."""
        return self._text.tokenizer.identity

    @functools.cached_property
    def _task(self) -> VideoTextTask:
        return VideoTextTask(name="texts", clean=self.config.data.text_clean)

    @functools.cached_property
    def _text(self) -> TextEncoder:
        if not self.reads_text:
            raise ValueError(
                f"{self.config.model.name} reads no text; take a model of videos and texts, such "
                "as viclip"
            )
        return self._task.text_encoder(self.context)

    def _prompts(self, labels: Sequence[str], template: str) -> list[str]:
        prompts = templates.prompts(labels, templates.named(template))
        for text in prompts:
            if self._task.is_empty(text):
                raise ValueError(f"nothing is left of the prompt {text!r} after cleaning")
        return prompts

    def _common(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the videos, the means of their views, and these with length 1."""
        self._check_finite(rows.values, "compare")
        values = rows.values.astype(np.float32)
        if no_direction(values).any():
            raise ValueError("the model gives an embedding of zero: the checkpoint is broken")
        record, _, mean = mean_of_views(rows.record, values)
        if no_direction(mean).any():
            raise ValueError("the embeddings of the views of a video cancel each other")
        return record, mean, unit(mean)

    def _check_finite(self, values: np.ndarray, use: str) -> None:
        if not np.isfinite(values).all():
            raise ValueError(BROKEN.format(use))

    def _no_classes(self) -> str:
        name, head = self.config.model.name, self.config.model.traits.classifier
        if self.reads_text:
            return f"labels are needed: {name} reads texts and has no classes of its own"
        if head is not None and head.classes == 0:
            return f"{self.checkpoint} has no classes: it is no fine-tuned classifier"
        return (
            f"{name} gives no classes; take a fine-tuned classifier, or a model that reads texts, "
            "such as viclip, with labels"
        )

    def _open(self, videos: Videos, views: ViewConfig, unreadable: str) -> ItemViews:
        if unreadable not in UNREADABLE:
            raise ValueError(f"unreadable={unreadable!r}: expected one of {', '.join(UNREADABLE)}")
        strict = unreadable == "raise"
        return open_videos(videos, views, threads=self.threads, strict=strict)

    def _by_video(self, stream: ItemViews, record: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(N, D): a row for each video, NaN where it cannot be used."""
        if not len(record):
            name, why = stream.names[0], stream.problems.get(0, "")
            raise ValueError(f"none of the videos can be used; {name}: {why}")
        found = np.full((len(stream.names), *values.shape[1:]), np.nan, values.dtype)
        found[record] = values
        return found


def _classes(
    config: TrainConfig, checkpoint: str, labels: Sequence[str], source: InitialWeights
) -> tuple[tuple[str, ...], TrainConfig]:
    """Names of the classes of a checkpoint's head, and the config with their number."""
    traits = config.model.traits
    head = traits.classifier is not None and traits.heads is None
    if not head or HEAD[0] not in source.params:
        if labels and not config.model.inputs.text:
            raise ValueError(
                f"{checkpoint} has no classes that the {len(labels)} labels could name"
            )
        return tuple(labels), config
    count = source.params[HEAD[0]].shape[-1]
    if labels and len(labels) != count:
        raise ValueError(f"{len(labels)} labels, {checkpoint} has {count} classes")
    known = labels or source.classes or [f"class {number}" for number in range(count)]
    return tuple(known), with_classes(config, count)
