"""Lengths of runs: datasets by number, by name, from the path; what they cost."""

from __future__ import annotations

import dataclasses

import pytest

from data_pipelines.config import DataConfig
from internvideo_jax.compile_check.length import CLASSES, RECORDS, SHORT, duration, find_records
from internvideo_jax.config import TrainConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.objectives.masked_pixels import MaskedPixels

CONFIG = TrainConfig(
    model=PretrainConfig.of_size("tiny", decoder_depth=1), objective=MaskedPixels(), epochs=1
)


def at(path: str) -> TrainConfig:
    return dataclasses.replace(CONFIG, data=DataConfig(train=path))


def test_a_number_wins():
    assert find_records("1234", at("shards/k400")) == (1234, 0, "--records")


@pytest.mark.parametrize(
    ("asked", "path", "name"),
    [
        ("k400", "", "kinetics400"),
        ("SSv2", "", "something2"),
        ("kinetics710", "shards/k400", "kinetics710"),
        ("", "gs://bucket/k700/train", "kinetics700"),
        ("", "/data/ssv2-train", "something2"),
    ],
)
def test_datasets_by_name(asked, path, name):
    records, classes, source = find_records(asked, at(path))
    assert (records, classes) == (RECORDS[name], CLASSES[name])
    assert source.startswith(name)


def test_nothing_known():
    assert find_records("", at("shards")) == (0, 0, "")
    assert find_records("", CONFIG) == (0, 0, "")
    for bad in ("k40", "-3", "0", "1e5"):
        with pytest.raises(ValueError, match="expected a number of clips or a dataset"):
            find_records(bad, CONFIG)


def test_a_set_that_is_here_is_read(shards):
    records, classes, source = find_records("", at(str(shards)))
    assert (records, source) == ({"video": 60}, str(shards))
    assert classes > 0


def test_every_short_name_is_of_a_known_set():
    assert set(SHORT.values()) <= RECORDS.keys() and set(CLASSES) <= RECORDS.keys()


def test_days_hours_and_money():
    # 86400 steps of 2 s are 2 days; of 10 chips, 480 chip-hours.
    assert duration(86400, 2.0, 10) == "2 days, 480 chip-hours"
    assert duration(86400, 2.0, 10, 1.25) == "2 days, 480 chip-hours, 600 at 1.25 per chip-hour"
