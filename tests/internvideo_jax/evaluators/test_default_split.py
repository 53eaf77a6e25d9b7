"""Which split is evaluated, and what is said where none was kept from training."""

import functools
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from data_pipelines.records import split_names
from internvideo_jax.evaluators import base
from internvideo_jax.evaluators.run import check_evaluators, headline
from internvideo_jax.tasks import Input, Result
from tests.data_pipelines.sets import write_set


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (("train", "val", "test"), "test"),
        (("train", "val"), "val"),
        (("train", "validation"), "validation"),
        (("train", "valid"), "valid"),
        (("Train", "Val"), "Val"),
        (("training", "testing", "validation"), "testing"),
        (("train", "dev"), "dev"),
        (("train",), "train"),
        (("extra", "training"), "training"),
        (("a", "b"), "a"),
        ((), ""),
    ],
)
def test_the_split_that_is_evaluated(monkeypatch, present, chosen):
    monkeypatch.setattr(
        base.manifest, "load", lambda directory: SimpleNamespace(splits=dict.fromkeys(present))
    )
    assert base.default_split("shards/") == chosen
    held_out = any(map(split_names.is_held_out, present))
    assert bool(base.held_out_warning(present, chosen)) == (not held_out)


def dataset(*splits: str):
    found = SimpleNamespace(
        directory="shards",
        splits=dict.fromkeys(splits),
        fingerprint=lambda split: "f" * 64,
        image_options=dict,
    )
    return SimpleNamespace(manifest=found, split=splits[-1], kept=None, __len__=lambda: 1)


class Sized(SimpleNamespace):
    def __len__(self) -> int:
        return 3


def opened(*splits: str) -> Sized:
    return Sized(**vars(dataset(*splits)))


def test_the_protocol_says_it():
    views = ViewConfig(clip=ClipConfig(frames=4, resolution=32))
    assert "warning" not in base.describe_data(opened("train", "test"), views)
    protocol = base.describe_data(opened("train"), views)
    assert "numbers of the training clips" in protocol["warning"] and protocol["split"] == "train"


def test_the_line_with_the_result_says_it():
    plain = Result({"top1": 0.5}, {"split": "test"})
    warned = Result({"top1": 1.0}, {"split": "train", "warning": "training clips"})
    assert headline({"test": plain, "knn": warned}) == (
        "test: top1 0.5 | knn: top1 1 (warning: training clips)"
    )


@pytest.mark.parametrize(
    ("split", "splits", "said"),
    [("", ("train",), 1), ("", ("train", "val"), 0), ("train", ("train",), 0)],
)
def test_it_is_said_once_at_the_start(capsys, split, splits, said):
    source = Input("", split, ViewConfig(), labelled=True)
    evaluator = SimpleNamespace(
        every=0, inputs=lambda: [source, source], check=lambda context: None
    )
    stream = SimpleNamespace(close=lambda: None, dataset=opened(*splits))
    context = SimpleNamespace(open=lambda source: stream)
    check_evaluators({"test": evaluator, "off": SimpleNamespace(every=-1)}, context)
    out = capsys.readouterr().out
    assert out.count("warning: evaluators test") == said
    if said:
        assert "shards: no split is called test or val" in out and "--hold-out" in out


def test_a_manifest_that_was_read_is_not_read_again(tmp_path, monkeypatch):
    place = str(write_set(tmp_path / "a", 2, classes=("run", "sit")))
    found = base.manifest.load(place)
    monkeypatch.setattr(base.manifest, "load", None)
    data, views = DataConfig(eval=place), ViewConfig(clip=ClipConfig(frames=4, resolution=32))
    context: Any = functools.partial(base.EvalContext, None, None, data)  # only its sets are asked
    opened = context(manifests={place: found}).dataset(Input("", "", views, labelled=False))
    assert opened.manifest is found and opened.split == "train"
