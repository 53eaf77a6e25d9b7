"""Which parts a training stream has, and the shapes of its batches, from the settings alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.clips import augment
from data_pipelines.config import DataConfig, ViewConfig
from data_pipelines.limits import suggest
from data_pipelines.records.dataset import Dataset
from data_pipelines.records.media import MEDIA
from data_pipelines.stream.mixture import Component, components_of
from data_pipelines.stream.parts.audio import Audio
from data_pipelines.stream.parts.base import Part, Spec, joined
from data_pipelines.stream.parts.features import Cached
from data_pipelines.stream.parts.text import Text, Tokenize, tokenizer_of
from data_pipelines.stream.parts.video import Video, Views


def columns(config: DataConfig) -> Spec:
    """What every example has, whatever its parts.

    `label` () int32, -1 for none; `index` () int32, the record's number in its set; `position` ()
    uint32, modulo 2**32 that in the stream or, with V config.fixed_views, index * V + view; in a
    mixture also `dataset` () int32.
    """
    number = ((), np.dtype(np.int32))
    return {
        "label": number,
        "index": number,
        "position": ((), np.dtype(np.uint32)),
        **({"dataset": number} if config.mixture else {}),
    }


def of_set(
    config: DataConfig,
    component: Component,
    tokenize: Tokenize | None = None,
    dataset: Dataset | None = None,
) -> tuple[Part, ...]:
    """The parts of the examples of a set.

    Args:
      dataset: the set, opened; None where only shapes are asked for, which then lack those of
        its cached features: only the companion knows them.

    Raises:
      ValueError, FileNotFoundError: a companion does not fit, or is not there.
    """
    media, made = MEDIA[component.media], list[Part]()
    if media.pixels:
        transform = None if dataset is None else _transform(config, component, dataset)
        made.append(Video(config.clip_of(component.media), transform))
    if media.audio:
        made += audio(config)
    made += captions(config, tokenize, component.prompt)
    made += cached(config, component.features)
    own: dict[str, Part] = dict(config.parts)
    made += own.values()
    return tuple(made if dataset is None else [part.open(dataset) for part in made])


def audio(config: DataConfig) -> list[Part]:
    """The audio, where it is on."""
    return [Audio(config.audio_seconds, config.audio_window)] if config.audio_seconds else []


def captions(config: DataConfig, tokenize: Tokenize | None = None, prompt: str = "") -> list[Part]:
    """The captions, where they are on."""
    if config.text == "off":
        return []
    ids = tokenize is not None or bool(config.tokenizer)
    return [Text(config.text, config.text_length, ids, tokenize, prompt)]


def media_of(config: DataConfig) -> tuple[str, ...]:
    """The media types of a stream, in the order of the table; each has steps of its own."""
    known = {component.media for component in components_of(config)}
    return tuple(media for media in MEDIA if media in known)


def cached(config: DataConfig, place: str) -> list[Part]:
    """The cached features, where there are any; `position` is their directory."""
    return [Cached(place, config.reader, config.fixed_views)] if place else []


def batch_spec(config: DataConfig, media: str) -> Spec:
    """The arrays of a batch of one media type, those of cached features left out."""
    component = next(part for part in components_of(config) if part.media == media)
    return {**columns(config), **joined(of_set(config, component))}


def of_pass(config: DataConfig, views: ViewConfig, names: Sequence[str]) -> tuple[Part, ...]:
    """Parts of an evaluation pass, not yet opened for its split.

    Args:
      config: of the run, whose settings of audio, captions and cached features they take.
      names: video, audio, text, features, or of config.parts.

    Raises:
      ValueError: one of them is switched off in the settings, or unknown.
    """
    own: dict[str, Part] = dict(config.parts)
    reads = "text" in names and config.tokenizer  # a vocabulary
    known: dict[str, Sequence[Part]] = {
        "video": [Views(views)],
        "audio": audio(config),
        "text": captions(config, tokenizer_of(config, None)) if reads else [],
        "features": cached(config, config.features),
        **{name: [part] for name, part in own.items()},
    }
    for name in names:
        if not known.get(name):
            off = "is switched off in config.data" if name in known else suggest(name, known)
            raise ValueError(f"the evaluation takes {name!r} from the batch: {off}")
    return tuple(part for name in names for part in known[name])


def _transform(
    config: DataConfig, component: Component, dataset: Dataset
) -> augment.TrainTransform:
    return augment.TrainTransform(
        resolution=config.clip_of(component.media).resolution,
        crop=component.crop,
        flip=augment.resolve_flip(component.flip, dataset.manifest),
        config=config.augment,
    )
