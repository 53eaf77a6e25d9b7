"""Mixtures as text, as arithmetic, and as what comes out of a stream."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.config import ClipConfig, DataConfig, ImageConfig, ReaderConfig
from data_pipelines.stream import mixture
from data_pipelines.stream.mixture import Component, Interleave, parse
from data_pipelines.stream.pipeline import TrainStream
from tests.data_pipelines.sets import write_set
from tests.data_pipelines.stream.batches import take

CLIP = ClipConfig(frames=2, stride=2, resolution=24)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """a and b are videos with different classes, s is as a, p is images."""
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "a", 12, classes=("run", "sit"), captions=[("one", "two"), (), ("",)])
    write_set(root / "b", 7, classes=("sit", "jump", "fall"), frames=5, flip_changes_label=True)
    write_set(root / "s", 5, classes=("run", "sit"))
    write_set(root / "p", 9, frames=1)
    return root


def config(sets_text: str, **changes) -> DataConfig:
    reader = ReaderConfig(threads=2, buffer=2)
    return dataclasses.replace(
        DataConfig(mixture=sets_text, global_batch=8, clip=CLIP, reader=reader), **changes
    )


def column(batches: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([batch[name] for batch in batches])


# ---------------------------------------------------------------------------------------- text


def test_a_mixture_is_one_line_of_text():
    assert parse("k400=/data/k400:0.7, ssv2=gs://bucket/ssv2:3e-1; flip=off;split=all") == (
        Component("k400", "/data/k400", Fraction(7, 10)),
        Component("ssv2", "gs://bucket/ssv2", Fraction(3, 10), split="all", flip="off"),
    )
    assert parse("a=x=1/y;weight=1/3,b=gs://z;media=image;weight=2") == (
        Component("a", "x=1/y", Fraction(1, 3)),
        Component("b", "gs://z", Fraction(2), media="image"),
    )
    assert parse("a=gs://b")[0].weight is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/data/k400", "expected NAME=DIRECTORY:WEIGHT, found '/data/k400'"),
        ("a=x,", "expected NAME=DIRECTORY:WEIGHT, found ''"),
        ("a b=x", "expected NAME=DIRECTORY"),
        ("a=x:1,a=y:1", "the name 'a' is given twice"),
        ("a=x:1,b=y", "no weight for b, but for others"),
        ("a=x:0,b=y:1", "weight '0' of a; expected a number above 0"),
        ("a=x:-1", "weight '-1' of a"),
        ("a=x:1/0", "weight '1/0' of a"),
        ("a=x;weight=half", "weight 'half' of a"),
        ("a=x:1e99999999", "weight '1e99999999' of a is too long a number; expected at most 40"),
        ("a=x:1e-99999999", "too long a number"),
        ("a=x:1e1999999", "too long a number"),
        ("a=x;weight=1E99999999", "too long a number"),
        ("a=x:1e19", "an exponent of at most 18"),
        (f"a=x:{'9' * 41}", f"weight '{'9' * 40}...' of a is too long a number"),
        (f"a=x:1/{'9' * 5000}", "too long a number"),
        (f"a=x:1e{'9' * 5000}", "too long a number"),
        (f"a=x:0.{'0' * 10**6}1", "too long a number"),
        ("a=x;medium=image", "unknown option 'medium=image' of a; .*did you mean 'media'"),
        ("a=x;media=sound", "unknown media type 'sound' of a; known: video, image"),
    ],
)
def test_what_is_not_a_mixture(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_weights_of_many_digits_are_exact():
    assert parse("a=x:1e18,b=y:0.000000000000000001")[1].weight == Fraction(1, 10**18)
    assert parse("a=x:0.12345678901234567890123456789")[0].weight == Fraction(
        12345678901234567890123456789, 10**29
    )


def test_shares_that_repeat_after_too_many_examples_are_refused():
    long = [Fraction(1, 2**61 - 1), Fraction(1, 2**62 - 57)]
    with pytest.raises(ValueError, match=r"the shares repeat after 6.9\de\+18 examples, more than"):
        Interleave.of(long)
    order = Interleave.of([Fraction(1), Fraction(2**62 - 2)])  # nearly as long as can be
    assert sum(order.count(part, 10**18) for part in range(2)) == 10**18
    part, number = order.locate(10**18)
    assert part == 1 and order.count(1, 10**18) == number


# ---------------------------------------------------------------------------------- arithmetic

weights = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@given(weights)
@settings(deadline=None)
def test_places_are_the_sorted_times(weights):
    """Against the definition: sort all elements of two periods by their times."""
    order = Interleave(tuple(weights))
    elements = sorted(
        (Fraction(2 * k + 1, 2 * weight), part, k)
        for part, weight in enumerate(weights)
        for k in range(2 * weight)
    )
    assert [order.locate(p) for p in range(len(elements))] == [(c, k) for _, c, k in elements]
    for position in range(len(elements) + 1):
        parts = [part for _, part, _ in elements[:position]]
        for part in range(len(weights)):
            assert order.count(part, position) == parts.count(part)


def test_shares_are_exact_and_evenly_spread():
    order = Interleave.of([Fraction("0.7"), Fraction("0.2"), Fraction("0.1")])
    assert order.weights == (7, 2, 1)
    parts = np.array([order.locate(p)[0] for p in range(1000)])
    assert np.bincount(parts).tolist() == [700, 200, 100]
    for part, share in enumerate((0.7, 0.2, 0.1)):
        drift = np.cumsum(parts == part) - share * np.arange(1, 1001)
        assert abs(drift).max() <= 1.5


def test_a_place_far_out_needs_no_replay():
    order = Interleave.of([Fraction(240_000_001), Fraction(168_913), Fraction("0.37")])
    for position in (0, 10**9 + 7, 10**15 + 1):
        part, k = order.locate(position)
        assert order.count(part, position) == k and order.count(part, position + 1) == k + 1
    assert sum(order.count(part, 10**15) for part in range(3)) == 10**15


# -------------------------------------------------------------------------------------- stream


def test_a_mixture_has_its_shares_and_every_record_once_an_epoch(sets):
    stream = TrainStream(config(f"a={sets}/a:0.75,b={sets}/b:0.25"))
    batches = take(stream, 8)
    dataset, index = column(batches, "dataset"), column(batches, "index")
    assert dataset.dtype == np.int32 and np.bincount(dataset).tolist() == [48, 16]
    assert all((batch["dataset"] == 0).sum() == 6 for batch in batches)
    for epoch in range(4):
        assert sorted(index[dataset == 0][12 * epoch : 12 * epoch + 12]) == list(range(12))
    for epoch in range(2):
        assert sorted(index[dataset == 1][7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert stream.seen(8) == {
        "data/a/share": 0.75,
        "data/a/epochs": 4.0,
        "data/b/share": 0.25,
        "data/b/epochs": 16 / 7,
    }


def test_without_weights_every_set_is_seen_equally_often(sets):
    stream = TrainStream(config(f"a={sets}/a,b={sets}/b", global_batch=19))
    (batch,) = take(stream, 1)
    for number, count in ((0, 12), (1, 7)):
        assert sorted(batch["index"][batch["dataset"] == number]) == list(range(count))


def test_a_mixture_of_one_set_is_that_set(sets):
    plain = take(TrainStream(config("", train=f"{sets}/a")), 3)
    mixed = take(TrainStream(config(f"a={sets}/a")), 3)
    for one, other in zip(plain, mixed, strict=True):
        assert set(other) - set(one) == {"dataset"}
        assert all((one[name] == other[name]).all() for name in one)


def test_labels_of_different_classes_are_not_mixed_unless_asked(sets):
    text = f"a={sets}/a,b={sets}/b"
    stream = TrainStream(config(text))
    assert stream.classes is None
    assert (column(take(stream, 3), "label") == -1).all()

    stream = TrainStream(config(text, merge_classes="name"))
    batches = take(stream, 3)
    assert stream.classes == ("run", "sit", "jump", "fall")
    dataset, index = column(batches, "dataset"), column(batches, "index")
    own = np.where(dataset == 0, index % 2, 1 + index % 3)
    assert (column(batches, "label") == own).all()

    stream = TrainStream(config(text, merge_classes="offset"))
    batches = take(stream, 3)
    assert stream.classes == ("a/run", "a/sit", "b/sit", "b/jump", "b/fall")
    own = np.where(dataset == 0, index % 2, 2 + index % 3)
    assert (column(batches, "label") == own).all()


def test_equal_class_lists_keep_their_labels(sets):
    stream = TrainStream(config(f"a={sets}/a,s={sets}/s"))
    batches = take(stream, 2)
    assert stream.classes == ("run", "sit")
    assert (column(batches, "label") == column(batches, "index") % 2).all()


def test_sets_of_one_length_come_in_different_orders(sets):
    batches = take(TrainStream(config(f"x={sets}/a,y={sets}/a")), 3)
    index, dataset = column(batches, "index"), column(batches, "dataset")
    assert (index[dataset == 0] != index[dataset == 1]).any()


def test_options_of_a_set_win(sets):
    with pytest.raises(ValueError, match="labels of 'b' change under a flip"):
        TrainStream(config(f"a={sets}/a,b={sets}/b", flip="on"))
    stream = TrainStream(config(f"a={sets}/a;crop=center,b={sets}/b;flip=auto", flip="on"))
    assert [s.transform.flip for s in stream.sources] == [True, False]
    assert [s.transform.crop for s in stream.sources] == ["center", "multiscale"]
    stream.close()


def test_a_directory_and_a_mixture_exclude_each_other(sets):
    with pytest.raises(ValueError, match="expected one of them"):
        TrainStream(config(f"a={sets}/a", train=f"{sets}/a"))
    with pytest.raises(ValueError, match="unknown config.data.merge_classes 'yes'"):
        TrainStream(config(f"a={sets}/a", merge_classes="yes"))


# ------------------------------------------------------------------------------------- media


def test_a_batch_holds_one_media_type(sets):
    text = f"a={sets}/a:2, b={sets}/b:1, p={sets}/p:1; media=image"
    stream = TrainStream(config(text, global_batch=6, image=ImageConfig(4, 16)))
    batches = take(stream, 30)
    images = np.array([(batch["dataset"] == 2).any() for batch in batches])
    shapes = [batch["video"].shape for batch in batches]
    assert {shape for shape, image in zip(shapes, images, strict=True) if image} == {
        (4, 1, 16, 16, 3)
    }
    assert {shape for shape, image in zip(shapes, images, strict=True) if not image} == {
        (6, 2, 24, 24, 3)
    }
    # A quarter of the examples in batches of 4, three quarters in batches of 6: 1 step to 2.
    assert images.sum() == 10
    dataset = column(batches, "dataset")
    assert np.bincount(dataset).tolist() == [80, 40, 40]
    assert column(batches, "position").tolist() == list(range(160))
    index = column(batches, "index")
    for number, count in ((0, 12), (1, 7), (2, 9)):
        own = index[dataset == number]
        for epoch in range(len(own) // count):
            assert sorted(own[count * epoch : count * (epoch + 1)]) == list(range(count))
    assert stream.plan.draws(30) == (80, 40, 40) and stream.plan.examples(30) == 160


def test_media_types_without_weights_go_by_their_batches_per_epoch():
    """As the reference, whose epoch holds all batches of all media types."""
    parts = [Component("v", "/v"), Component("p", "/p", media="image")]
    settings = DataConfig(global_batch=10, image=ImageConfig(global_batch=30))
    plan = mixture.make_plan(settings, parts, [1000, 6000])
    assert plan.steps.weights == (1, 2)
    assert plan.media_records() == {"video": 1000, "image": 6000}
    assert plan.mean_batch() == pytest.approx(70 / 3)


# ----------------------------------------------------------------------------------- captions


def test_captions_come_only_when_asked(sets):
    plain = take(TrainStream(config("", train=f"{sets}/a")), 2)
    first = take(TrainStream(config("", train=f"{sets}/a", text="first")), 2)
    for one, other in zip(plain, first, strict=True):
        assert set(other) - set(one) == {"caption", "has_text"}
        assert all((one[name] == other[name]).all() for name in one)
    index = column(first, "index")
    assert (column(first, "caption") == np.where(index % 3 == 0, "one", "")).all()
    assert (column(first, "has_text") == (index % 3 == 0)).all()


def test_a_random_caption_is_drawn_by_position(sets):
    settings = config("", train=f"{sets}/a", text="random", global_batch=12)
    drawn = take(TrainStream(settings), 8)
    captions, has = column(drawn, "caption"), column(drawn, "has_text")
    counts = {text: int((captions[has] == text).sum()) for text in ("one", "two")}
    assert sum(counts.values()) == 32 and min(counts.values()) >= 6
    again = take(TrainStream(settings, start_step=5), 3)
    assert (column(again, "caption") == column(drawn[5:], "caption")).all()


def lengths(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), 7] for text in texts])


def test_a_tokeniser_gives_numbers(sets):
    settings = config("", train=f"{sets}/a", text="first")
    stream = TrainStream(settings, tokenize=lengths)
    batches = take(stream, 2)
    text = column(batches, "text")
    assert text.dtype == np.int32 and "caption" not in batches[0]
    assert (text[:, 0] == np.where(column(batches, "index") % 3 == 0, 3, 0)).all()
    assert stream.identity["text"] == {"choice": "first", "tokenizer": "lengths"}
    with pytest.raises(ValueError, match=r"the tokeniser gave float64 \(8,\) for 8 texts"):
        take(TrainStream(settings, tokenize=lambda texts: np.zeros(len(texts))), 1)
    with pytest.raises(ValueError, match="unknown config.data.text 'all'"):
        TrainStream(config("", train=f"{sets}/a", text="all"))
