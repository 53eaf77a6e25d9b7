"""Frozen features of a split, for probes and nearest neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.config import ViewConfig
from data_pipelines.limits import limited
from data_pipelines.records.dataset import Dataset
from internvideo_jax.evaluators.base import EvalContext, check_finite, describe_data
from internvideo_jax.evaluators.per_video import Scored
from internvideo_jax.inference.steps import Forward
from internvideo_jax.ops.probe_heads import HeadSpec, read
from internvideo_jax.protocols import Model, clip_of
from internvideo_jax.tasks import Input
from internvideo_jax.types import Params

MEAN = HeadSpec("linear")  # reads the mean over all tokens

# Features are kept in host memory; beyond this, fewer clips or pooled features are needed.
MEMORY_LIMIT = 4 << 30


@dataclasses.dataclass(frozen=True)
class FeatureTask:
    """Settings of every task that learns from frozen features of one split and scores another."""

    name: str = ""
    every: int = limited(0, least=-1)  # steps; 0 = only at the end, -1 = never
    data: str = ""  # default: the run's
    train_split: str = "train"
    split: str = ""  # default: test, else val, else train
    views: ViewConfig = ViewConfig()

    compares_texts: ClassVar[bool] = False

    def check(self, context: EvalContext) -> None:
        """Both splits say it all."""

    def inputs(self) -> tuple[Input, Input]:
        """The split that heads learn on, and the one they are tested on."""
        return (
            Input(self.data, self.train_split, self.views, labelled=True),
            Input(self.data, self.split, self.views, labelled=True),
        )


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    """Features of labelled clips in record order."""

    values: np.ndarray  # (R, F) float32 vectors, or (R, N, D) float16 tokens
    label: np.ndarray  # (R,)
    classes: tuple[str, ...]
    protocol: dict[str, object]
    record: np.ndarray  # (R,) numbers in `dataset`
    dataset: Dataset

    def scored(self, scores: np.ndarray) -> Scored:
        """(R, K) scores of these clips, for those who ask for every video."""
        return Scored(self.dataset, self.record, self.label, scores, self.classes)


def features_of(model: Model, spec: HeadSpec) -> Forward:
    """(params, batch with video (B, T, H, W, 3) uint8) -> what the head of `spec` reads.

    (B, F) float32, or of an attentive head all tokens (B, N, D) in half precision.
    """
    grid = clip_of(model.config).grid

    def forward(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        found = model.apply(params, batch["video"], method="features")
        pools = spec.wants_pooled and model.has("pool")
        pooled = model.apply(params, found, method="pool") if pools else None
        found = read(spec, found, grid, pooled)
        return found.astype(jnp.float16) if spec.kind == "attentive" else found

    return forward


def extract(
    context: EvalContext, source: Input, spec: HeadSpec, *, limit: int = 0
) -> LabelledFeatures:
    """Runs the encoder over a split, one view per clip.

    Args:
      spec: the head that will read the features, see ops/probe_heads.py.
      limit: use only the first `limit` labelled clips; 0 = all.

    Raises:
      ValueError: no labels, several views, more tokens than MEMORY_LIMIT holds, or features that
        are not finite (tokens are kept in half precision).
    """
    if source.views.clips * source.views.crops != 1:
        raise ValueError("features are taken from one view per clip: set clips = crops = 1")
    stream = context.open(source)
    model = context.model
    given = context.model.config.traits.features
    if given is None:
        raise ValueError(f"config.model is {model.config.name!r}, which gives no features")
    tokens = spec.kind == "attentive"
    if tokens:
        clips = min(limit or len(stream.dataset.used), len(stream.dataset.used))
        size = clips * given.tokens * given.width * 2
        if size > MEMORY_LIMIT:
            raise ValueError(
                f"token features of {clips} clips take {size / 2**30:.1f} GiB, the limit is "
                f"{MEMORY_LIMIT / 2**30:.0f} GiB; set max_clips of the probe to "
                f"{clips * MEMORY_LIMIT // size} or less"
            )

    values, labels, records, seen = [], [], [], 0
    outputs = context.outputs(
        stream,
        ("features", spec),
        lambda: features_of(model, spec),
        f"features {stream.dataset.split}",
    )
    for batch, features in outputs:
        keep = batch["valid"] & (batch["label"] >= 0)
        if limit:
            keep &= np.cumsum(keep) <= limit - seen
        check_finite(features, batch, keep, "features")
        values.append(features[keep])
        labels.append(batch["label"][keep])
        records.append(batch["index"][keep])
        seen += int(keep.sum())
        if limit and seen >= limit:
            break
    outputs.close()
    return LabelledFeatures(
        np.concatenate(values),
        np.concatenate(labels),
        stream.dataset.classes,
        describe_data(stream.dataset, source.views),
        np.concatenate(records),
        stream.dataset,
    )
