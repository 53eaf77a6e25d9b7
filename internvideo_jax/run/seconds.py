"""How many seconds a clip spans in the data of a run, beside what its weights learned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.clips import seconds
from data_pipelines.clips.seconds import Spans
from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.records.dataset import Dataset
from data_pipelines.records.media import MEDIA
from data_pipelines.stream.mixture import Opened
from internvideo_jax.checkpoint.learned import Learned
from internvideo_jax.config import TrainConfig


def of_training(config: TrainConfig, opened: Opened) -> dict[str, Spans]:
    """Spans of the training clips, by set; without sets that have no clips of several frames."""
    found = {}
    for part, dataset in opened:
        if config.model.inputs.clip is None or not MEDIA[part.media].pixels:
            continue
        clip = config.data.clip_of(part.media)
        spans = seconds.of_training(dataset.frame_times, clip)
        if spans.videos:
            found[part.name or dataset.manifest.name] = spans
    return found


def as_plain(found: Mapping[str, Spans]) -> dict[str, Any]:
    """What `run.json` and checkpoints say."""
    return {name: spans.as_plain() for name, spans in found.items()}


def lines(config: TrainConfig, found: Mapping[str, Spans], weights: Learned | None) -> list[str]:
    """A line for every set, and a warning where it is not what the weights learned from."""
    told = []
    for name, spans in found.items():
        clip = config.data.clip
        told.append(f"a clip of {name}, {_shown(clip)}, spans {spans.text()}")
        if weights is not None:
            told += _compared(clip, spans, weights, "config.data.clip.stride")
    if found and weights is not None and not weights.seconds:
        told.append(f"what a clip spanned for {weights.name} is not known: {weights.why}")
    return told


def of_test(
    label: str, views: ViewConfig, dataset: Dataset, weights: Learned | None
) -> Iterator[str]:
    """The same lines for the clips of an evaluator."""
    spans = seconds.of_views(dataset.frame_times, views)
    if not spans.videos:
        return
    yield f"{label}: a clip, {_shown(views.clip)}, spans {spans.text()}"
    if weights is not None:
        field = f"config.evals.{label}.views.clip.stride"
        yield from _compared(views.clip, spans, weights, field)


def _shown(clip: ClipConfig) -> str:
    return f"{clip.frames} frames (sampling {clip.sampling}, stride {clip.stride})"


def _compared(clip: ClipConfig, spans: Spans, weights: Learned, field: str) -> Iterator[str]:
    times = seconds.difference(spans.median, weights.seconds)
    if not times:
        return
    faster = "faster" if spans.median > weights.seconds else "slower"
    stride = seconds.fitting_stride(clip, spans, weights.seconds)
    here = spans.median * stride / clip.stride
    advice = f"; --{field}={stride} spans about {here:.2g} s" if stride else ""
    yield (
        f"warning: a clip spans {spans.median:.3g} s here and {weights.seconds:.3g} s where "
        f"{weights.name} learned ({weights.why}), {times:.1f} times apart: everything moves "
        f"{faster} for the model than it learned{advice}"
    )
