"""Settings of a stream that cannot work, told before anything is opened."""

from __future__ import annotations

from data_pipelines.clips import sampling
from data_pipelines.config import DataConfig
from data_pipelines.stream import multiview
from data_pipelines.stream.parts import audio, text
from data_pipelines.stream.prefetch import check_reader


def check_settings(config: DataConfig) -> None:
    """ValueError for settings of a training stream that cannot work, whatever the data."""
    multiview.check_clip(config.clip, sampling.TRAIN_RULES)
    check_reader(config.reader)
    text.check_choice(config.text)
    check_views(config)
    audio.check(config.audio_seconds, config.audio_window)
    for part in config.parts.values():
        part.check(config)


def check_views(config: DataConfig) -> None:
    """ValueError for a number of views that is none, or that repeats contradict."""
    if config.fixed_views < 0:
        raise ValueError(
            f"config.data.fixed_views = {config.fixed_views}: expected a number of views, or 0 for "
            "random ones"
        )
    if config.fixed_views and config.repeats > 1:
        # The frames of repeats are drawn once, so none but the first would be a view of its own.
        raise ValueError(
            f"config.data.fixed_views = {config.fixed_views} with config.data.repeats = "
            f"{config.repeats}: a pass shows one view of each record; set config.data.repeats to 1 "
            "and train for more epochs, or config.data.fixed_views to 0"
        )
