"""Fixed views: the same clips by record and view as in the stream, and their cached arrays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.clips import augment, sampling
from data_pipelines.config import ClipConfig, DataConfig, ImageConfig, ReaderConfig
from data_pipelines.records import manifest
from data_pipelines.records.companion import CompanionWriter
from data_pipelines.records.dataset import UnreadableRecordError, open_dataset
from data_pipelines.stream import identity
from data_pipelines.stream.parts import features
from data_pipelines.stream.pipeline import TrainStream
from data_pipelines.stream.views import FixedViews
from tests.data_pipelines.sets import write_set
from tests.data_pipelines.stream.batches import first_batches

CLIP = ClipConfig(frames=2, stride=2, resolution=24)
READER = ReaderConfig(threads=2, buffer=2)
A, B = 13, 7  # records of the sets


def write_rows(directory: Path, name: str, views: int, empty=()) -> None:
    """Row v of record i is [i, v]."""
    found = manifest.load(str(directory))
    writer = CompanionWriter(directory / name, "rows", found, "train")
    for number in writer.missing():
        with writer.shard(number) as shard:
            for index in writer.records(number):
                rows = np.array([[index, view] for view in range(views)], np.int32)
                rows = rows[:0] if index in empty else rows
                shard.append({"row": rows, "view": rows[:, 1].astype(np.float32)})
    writer.finish()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("views")
    write_set(root / "a", A, captions=[("one", "two", "three", "four")])
    write_set(root / "b", B, captions=[("five",)])
    write_set(root / "p", 9, frames=1, media_type="image", captions=[("six",)])
    for name in "ab":
        write_rows(root / name, "rows3", 3)
    write_rows(root / "p", "rows3", 3)
    write_rows(root / "a", "left", 3, empty=(0, 5))
    return root


def config(sets, **changes) -> DataConfig:
    base = DataConfig(
        train=f"{sets}/a",
        global_batch=4,
        clip=CLIP,
        flip="on",
        seed=3,
        reader=READER,
        fixed_views=3,
    )
    if "mixture" in changes:
        changes["train"] = ""
    return dataclasses.replace(base, **changes)


def mixed(sets, **changes) -> DataConfig:
    text = f"a={sets}/a:0.5, b={sets}/b:0.3; crop=random_resized, p={sets}/p:0.2; media=image"
    image = ImageConfig(global_batch=8, resolution=16)
    return config(sets, mixture=text, image=image, features="rows3", **changes)


def joined(settings: DataConfig, steps: int) -> dict[str, np.ndarray]:
    batches = first_batches(settings, steps)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_pass_e_shows_every_record_once_in_view_e(sets):
    rows = joined(config(sets, features="rows3"), 4 * A // 4)
    index, position = rows["index"], rows["position"]
    for epoch in range(4):  # 4 passes of 3 views: the fourth is the first again
        own = slice(epoch * A, (epoch + 1) * A)
        assert sorted(index[own]) == list(range(A))
        assert (position[own] == index[own] * 3 + epoch % 3).all()
    assert rows["position"].dtype == np.uint32
    assert np.array_equal(rows["features/row"], np.stack([index, position % 3], axis=1))
    assert np.array_equal(rows["features/view"], position % 3)

    # Order as without views, pixels and captions by view alone.
    plain = joined(config(sets, fixed_views=0), A)
    assert np.array_equal(plain["index"], index)
    assert plain["position"].tolist() == list(range(4 * A))
    first, last = np.argsort(index[:A]), 3 * A + np.argsort(index[3 * A :])
    second = A + np.argsort(index[A : 2 * A])
    assert np.array_equal(rows["video"][first], rows["video"][last])
    differs = (rows["video"][first] != rows["video"][second]).any((1, 2, 3, 4))
    assert differs.sum() > A // 2


def test_the_draws_are_what_their_definition_says(sets):
    """Written out once more: one Philox stream per index * views + view."""
    dataset = open_dataset(f"{sets}/a", "train")
    transform = augment.TrainTransform(resolution=24, crop="multiscale", flip=True)
    rows = joined(config(sets, text="random"), 7)
    for row, (index, position) in enumerate(zip(rows["index"], rows["position"], strict=True)):
        rng = np.random.Generator(np.random.Philox(key=[3, int(position)]))
        record = dataset.load(int(index))
        wanted = sampling.TRAIN["window"](8, 2, 2, rng)
        pixels = transform(dataset.frames(int(index), record, wanted), rng)
        assert (rows["video"][row] == pixels).all()
        rng = np.random.Generator(np.random.Philox(key=[3, int(position)], counter=[0, 0, 0, 1]))
        assert rows["caption"][row] == record.captions[int(rng.integers(4))]


@pytest.mark.parametrize("name", ["", "a", "b", "p"])
def test_views_by_record_are_those_of_the_stream(sets, name):
    settings = mixed(sets) if name else config(sets)
    views = FixedViews(settings, name)
    number = "abp".index(name or "a")
    seen = set()
    for batch in first_batches(settings, 40):
        chosen = batch["dataset"] == number if name else np.ones(len(batch["index"]), bool)
        for row in np.flatnonzero(chosen):
            record, position = int(batch["index"][row]), int(batch["position"][row])
            view = position % 3
            out = np.empty(
                (views.clip.frames, views.clip.resolution, views.clip.resolution, 3), np.uint8
            )
            views.read(record, view, out)
            assert views.position(record, view) == position
            assert out.tobytes() == batch["video"][row].tobytes()
            seen.add((record, view))
    assert len(seen) > len(views)  # of several passes


def test_hosts_and_restarts_do_not_show(sets):
    settings = mixed(sets, text="random")
    expected = first_batches(settings, 9)
    halves = [first_batches(settings, 4, start_step=5, process=i, processes=2) for i in range(2)]
    for step, parts in enumerate(zip(*halves, strict=True), 5):
        for name, array in expected[step].items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), array), name


def test_the_identity_names_the_views(sets):
    def of(**changes):
        stream = TrainStream(config(sets, **changes))
        stream.close()
        return json.loads(json.dumps(stream.identity))

    assert "views" not in of(fixed_views=0)
    assert of()["views"] == 3
    (line,) = identity.differences(of(), of(fixed_views=0))
    assert line.startswith("views: found 3")


def test_views_are_refused_where_they_mean_nothing(sets):
    for changes, text in (
        ({"fixed_views": -1}, "views = -1: expected a number of views"),
        ({"repeats": 2}, "one view of each record; set config.data.repeats to 1"),
        (
            {"features": "rows3", "fixed_views": 2},
            r"found row \(3, 2\), view \(3,\).*they were made",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            TrainStream(config(sets, **changes))
    with pytest.raises(ValueError, match="set it to the number of views of each record"):
        FixedViews(config(sets, fixed_views=0))
    with pytest.raises(ValueError, match="say which: a, b, p"):
        FixedViews(mixed(sets))
    with pytest.raises(ValueError, match="no set 'c' in config.data.mixture; it has a, b, p"):
        FixedViews(mixed(sets), "c")
    with pytest.raises(ValueError, match="no set 'c': config.data has no mixture"):
        FixedViews(config(sets), "c")
    with pytest.raises(IndexError, match="view 3 of record 0: there are 13 records of 3"):
        FixedViews(config(sets)).read(0, 3, np.empty((2, 24, 24, 3), np.uint8))


def test_a_record_without_features_is_unreadable(sets):
    """Its neighbour stands in with its own view and arrays, or the run stops."""
    settings = config(sets, features="left")
    with pytest.raises(UnreadableRecordError, match="could not be read when they were made"):
        first_batches(settings, 4)
    reader = dataclasses.replace(READER, on_corrupt="substitute")
    rows = joined(dataclasses.replace(settings, reader=reader), A)
    assert not {0, 5} & set(rows["index"].tolist())
    assert (rows["position"] // 3 == rows["index"]).all()
    assert np.array_equal(rows["features/row"][:, 0], rows["index"])
    assert np.array_equal(rows["features/row"][:, 1], rows["position"] % 3)
    views = FixedViews(settings)
    out = np.empty((2, 24, 24, 3), np.uint8)
    for row in range(len(rows["index"])):
        views.read(int(rows["index"][row]), int(rows["position"][row]) % 3, out)
        assert np.array_equal(out, rows["video"][row])


def test_positions_wrap_at_32_bits():
    from data_pipelines.stream.assemble import wrapped

    assert wrapped(np.array([2**32 - 1, 2**32, 2**40 + 5])).tolist() == [2**32 - 1, 0, 5]


def test_what_stands_for_a_record_left_out():
    shapes = {"x": ((2, 3), np.dtype(np.float16)), "y": ((), np.dtype(np.int32))}
    found = features.left_out(shapes)
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        "x": ((0, 2, 3), np.float16),
        "y": ((0,), np.int32),
    }
