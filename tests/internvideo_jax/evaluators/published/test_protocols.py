"""Published protocols, what departs from them, and how rows are dealt to devices."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.clips import sampling, transforms
from data_pipelines.config import ViewConfig
from data_pipelines.recipe_files import load as load_recipe
from data_pipelines.records.dataset import open_dataset
from data_pipelines.stream.pipeline import ViewPass
from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.evaluate import with_protocol
from internvideo_jax.evaluators import metrics
from internvideo_jax.evaluators.base import describe_data
from internvideo_jax.evaluators.classification import Accuracy, per_class_sheet
from internvideo_jax.evaluators.published import protocols
from internvideo_jax.inference.steps import TILE, deal, tile_rows
from tests.data_pipelines.sets import write_set
from tests.recipes import shipped


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_a_protocol_names_rules_that_exist(name):
    found = protocols.find(name)
    assert found.sampling in sampling.VIEWS
    assert found.merge in metrics.MERGES
    boxes = transforms.crop_boxes(32, 48, 32, found.crops, found.crop_rule)
    assert len(boxes) == found.crops
    assert found.source
    test = Accuracy.of_protocol(name, frames=16, resolution=224, batch=4)
    assert protocols.departures(name, values(test)) == {}
    assert (test.views.clip.frames, test.views.clip.resolution, test.views.batch) == (16, 224, 4)


def values(test: Accuracy) -> dict:
    return protocols.values_of(test.views, test.merge, test.mean_ap)


def test_every_recipe_is_tested_as_its_protocol_says():
    for name in shipped.recipes():
        for evaluator in shipped.config(name).evals.values():
            if isinstance(evaluator, Accuracy) and evaluator.protocol:
                assert protocols.departures(evaluator.protocol, values(evaluator)) == {}, name


def test_what_departs_is_named():
    test = Accuracy.of_protocol("videomae/kinetics", frames=16, resolution=224, batch=4)
    views = dataclasses.replace(test.views, clips=2)
    changed = dataclasses.replace(test, views=views, merge="logit")
    assert protocols.departures("videomae/kinetics", values(changed)) == {
        "clips": {"preset": 5, "used": 2},
        "merge": {"preset": "probability", "used": "logit"},
    }


def test_an_unknown_protocol_is_named_with_its_neighbour():
    with pytest.raises(ValueError, match="did you mean 'uniformerv2/kinetics'"):
        protocols.find("uniformer/kinetics")
    with pytest.raises(ValueError, match="unknown test protocol 'nobody'"):
        Accuracy(protocol="nobody").inputs()


def test_the_flag_replaces_the_views_of_the_test():
    config = shipped.config("videomae-finetune-v2-b_k400")
    found = with_protocol(config, "videomae/something", {"data.eval"}).evals["test"]
    assert found.protocol == "videomae/something"
    views = found.views
    assert (views.clips, views.clip.sampling, views.clip.frames) == (2, "segments", 16)
    assert views.batch == config.evals["test"].views.batch
    with pytest.raises(ValueError, match="and --config.evals.test.views.clips both decide"):
        with_protocol(config, "videomae/kinetics", {"evals.test.views.clips"})
    pretrain = shipped.config("videomae-pretrain-tiny")
    with pytest.raises(ValueError, match="`test`, which this config lacks; it has reconstruction"):
        with_protocol(pretrain, "videomae/kinetics", ())


@pytest.mark.parametrize(
    ("views", "rows"), [(1, 8), (2, 8), (3, 6), (6, 6), (8, 8), (12, 6), (15, 5), (21, 7), (30, 6)]
)
def test_a_tile_is_whole_videos_or_an_even_share_of_one(views, rows):
    assert tile_rows(views) == rows <= TILE


def rows(*counts: int):
    """Batches of so many rows, numbered through."""
    first = 0
    for count in counts:
        number = np.arange(first, first + count)
        yield {"index": number, "video": number[:, None] * 10, "valid": np.ones(count, bool)}
        first += count


@pytest.mark.parametrize("counts", [(12, 12, 12), (5, 5, 5, 5), (1, 40, 2), (7,), (14, 7), ()])
def test_dealt_rows_are_all_rows_once_and_in_order(counts):
    dealt = list(deal(rows(*counts), 7))
    assert all(len(value) == 7 for batch in dealt for value in batch.values())
    assert len(dealt) == -(-sum(counts) // 7)
    kept = [index for batch in dealt for index in batch["index"][batch["valid"]]]
    assert kept == list(range(sum(counts)))
    for batch in dealt:
        np.testing.assert_array_equal(batch["video"][:, 0], batch["index"] * 10)


def test_rules_of_ties():
    scores, label = np.array([[1.0, 1.0, 0.0]] * 2), np.array([0, 1])
    assert metrics.top_k(scores, label[:1], 1) == 1.0
    assert metrics.top_k(scores, label[:1], 1, ties="last") == 0.0
    assert metrics.top_k(scores, label[1:], 1, ties="last") == 1.0
    with pytest.raises(ValueError, match="unknown tie rule 'random'"):
        metrics.top_k(scores, label, 1, ties="random")


def test_a_class_that_is_only_predicted_counts_as_missed_or_not_at_all():
    scores, label = np.array([[0, 1.0, 0], [0, 0, 1.0]]), np.array([1, 1])
    assert metrics.mean_class_accuracy(scores, label) == 0.25
    assert metrics.mean_class_accuracy(scores, label, over="labels") == 0.5


def test_average_precision_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert metrics.average_precision(scores, np.array([1, 0, 1, 0])) == (1 + 2 / 3) / 2
    # Equal scores have one precision, whatever their order.
    for relevant in ([1, 0, 0, 0], [0, 0, 0, 1]):
        assert metrics.average_precision(np.ones(4), np.array(relevant)) == 0.25
    assert np.isnan(metrics.average_precision(scores, np.zeros(4)))


def test_the_sheet_begins_with_the_worst_class():
    table = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 1]])
    assert per_class_sheet(table, ["walk", "run, fast", "jump"]).splitlines() == [
        "class,videos,top1,most_often_taken_for,share",
        "jump,3,0.3333,walk,0.6667",
        'walk,4,0.7500,"run, fast",0.2500',
    ]


@pytest.mark.parametrize(
    ("options", "pixels", "storage"),
    [
        ({"pixels": "stored", "storage": "png"}, "stored", "png"),
        ({"short_side": 256}, "display", "jpeg"),  # from before there was a choice
        ({"adopted": {"train": "*"}}, "unknown", "unknown"),
    ],
)
def test_results_say_which_pixels_the_data_has(tmp_path, options, pixels, storage):
    dataset = open_dataset(str(write_set(tmp_path / "s", 1)), "train")
    made = dataclasses.replace(dataset.manifest, options=options)
    found = describe_data(dataclasses.replace(dataset, manifest=made), ViewConfig())
    assert (found["pixels"], found["storage"]) == (pixels, storage)


FAMILIES = {
    "videomae": "videomae/finetune:recipe=v2/b_k400,smoke",
    "internvideo1": "videomae/finetune:recipe=internvideo1/h_k400,smoke",
    "uniformerv2": "uniformerv2/finetune:size=base,smoke",
    "umt": "umt/finetune:recipe=b_k710,smoke",
    "internvideo2": "internvideo2/finetune:recipe=b_k710,smoke",
}


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_every_protocol_gives_views_of_its_family(name, shards):
    """From the recipe as the command reads it to the clips of a split."""
    config = to_typed(TrainConfig, load_recipe(FAMILIES[name.partition("/")[0]]))
    test = with_protocol(config, name, {"data.eval"}).evals["test"]
    assert test.protocol == name and test._preset()["modified"] == {}
    stream = ViewPass(str(shards), "test", dataclasses.replace(test.views, batch=1))
    clips = next(stream)["video"]
    stream.close()
    protocol = protocols.find(name)
    count = protocol.clips * protocol.crops
    assert clips.shape == (count, config.model.frames, *[config.model.resolution] * 2, 3)
