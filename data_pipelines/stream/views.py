"""The clips of config.data.fixed_views by record and view, for programs that prepare the training.

A training stream with V views shows record i in pass e as its view e % V. Here the same pixels are
reached by (record, view), in any order, so that what a frozen teacher says of them can be computed
beforehand and stored in a companion (`records.companion`), shard by shard.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data_pipelines.clips import augment, sampling
from data_pipelines.config import STREAM_VERSION, AugmentConfig, ClipConfig, DataConfig
from data_pipelines.records.dataset import Dataset, open_dataset
from data_pipelines.records.media import MEDIA
from data_pipelines.stream import mixture
from data_pipelines.stream.assemble import Examples, Source
from data_pipelines.stream.mixture import Component
from data_pipelines.stream.multiview import check_clip
from data_pipelines.stream.parts import made
from data_pipelines.stream.parts.base import Spec, joined
from data_pipelines.stream.settings import check_views


class FixedViews:
    """The clips of one set of a stream.

    They do not depend on the other sets of a mixture. Safe to share between threads.

    Args:
      config: of the training stream; its captions, audio and cached features are left aside.
      name: of the set in the mixture, empty without one.

    Raises:
      ValueError: config.fixed_views is not positive, there is no such set or it has no pixels, or
        settings contradict each other or the dataset.
      FileNotFoundError: the set is not there.
    """

    def __init__(self, config: DataConfig, name: str = ""):
        check_clip(config.clip, sampling.TRAIN_RULES)
        check_views(config)
        if not config.fixed_views:
            raise ValueError(
                "config.data.fixed_views = 0: the stream draws its clips anew in every pass, so "
                "that nothing can be prepared for them; set it to the number of views of each "
                "record, such as 1"
            )
        component = _component(config, name)
        # What cannot be read is for the caller to count, not to be replaced by its neighbour.
        reader = dataclasses.replace(config.reader, on_corrupt="raise")
        config = dataclasses.replace(
            config, features="", text="off", tokenizer="", audio_seconds=0.0, parts={},
            reader=reader,
        )  # fmt: skip
        dataset = open_dataset(
            component.directory, component.split, check_crc=config.reader.check_crc
        )
        component = dataclasses.replace(component, features="")
        if not MEDIA[component.media].pixels:
            raise ValueError(
                f"sets of media={component.media} have no pixels, so there are no views of "
                f"{component.name} to prepare anything for"
            )
        self._source = Source.of(0, component, dataset, None, False, config)
        self._examples = Examples(config)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def views(self) -> int:
        """Of each record."""
        return self._examples.config.fixed_views

    @property
    def component(self) -> Component:
        """The set, with every option filled in."""
        return self._source.component

    @property
    def dataset(self) -> Dataset:
        """What it reads."""
        return self._source.dataset

    @property
    def clip(self) -> ClipConfig:
        """The shape of the clips."""
        return self._examples.config.clip_of(self._source.component.media)

    def spec(self) -> Spec:
        """The arrays of a view in a batch: `video`, and `position` of which it is drawn."""
        name = "position"
        return {name: made.columns(self._examples.config)[name], **joined(self._source.parts)}

    def position(self, record: int, view: int) -> int:
        """What the random draws of a view come from; a batch has it modulo 2**32."""
        return record * self.views + view

    def read(self, record: int, view: int, out: np.ndarray) -> None:
        """Writes the pixels of a view to `out` (T, H, W, 3) uint8.

        Raises:
          IndexError: no such record or view.
          UnreadableRecordError: the record is damaged.
        """
        if not (0 <= record < len(self) and 0 <= view < self.views):
            raise IndexError(
                f"view {view} of record {record}: there are {len(self)} records of {self.views}"
            )
        rows = [{"video": out[None]}]
        self._examples.fill(self._source, record, rows, position=0, view=view)


def view_settings(config: DataConfig, component: Component, dataset: Dataset) -> dict[str, Any]:
    """What decides the pixels of the views of a set, beside its records, as JSON values."""
    settings: dict[str, Any] = {
        "fixed_views": config.fixed_views,
        "seed": config.seed,
        "clip": dataclasses.asdict(config.clip_of(component.media)),
        "crop": component.crop,
        "flip": augment.resolve_flip(component.flip, dataset.manifest),
        "version": STREAM_VERSION,
    }
    if config.augment != AugmentConfig():  # what is off is not mentioned
        settings["augment"] = dataclasses.asdict(config.augment)
    return settings


def _component(config: DataConfig, name: str) -> Component:
    components = {component.name: component for component in mixture.components_of(config)}
    if name in components:
        return components[name]
    known = ", ".join(components)
    if not config.mixture:
        raise ValueError(f"no set {name!r}: config.data has no mixture, leave the name out")
    if not name:
        raise ValueError(f"config.data.mixture has several sets, say which: {known}")
    raise ValueError(f"no set {name!r} in config.data.mixture; it has {known}")
