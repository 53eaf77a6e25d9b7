"""Which clip goes where, and what a restart may change."""

import dataclasses
import json

import pytest

from data_pipelines.ingest import estimate, plan
from data_pipelines.ingest.decode import DecodeOptions, decode_clip
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.rows import Row
from tests.data_pipelines.ingest.clips import make_video


def rows(count: int, split: str = "train", **changes) -> list[Row]:
    return [
        dataclasses.replace(
            Row(f"/v/{i}.mp4", f"{i}.mp4", f"{split}{i}", split, ("a",), where=f"line {i}"),
            **changes,
        )
        for i in range(count)
    ]


@pytest.fixture
def options(tmp_path):
    def make(**changes) -> IngestOptions:
        return IngestOptions(**{"source": "v", "out": str(tmp_path), "shards": 3, **changes})

    return make


def assigned(options: IngestOptions, members: list[Row]) -> dict[str, list[str]]:
    the_plan, _ = plan.prepare(options, members, ("a",))
    tasks = plan.assign(the_plan, options, members)
    return {task.name: [row.id for row in task.rows] for _, task in tasks}


def test_every_row_is_in_one_shard_of_its_split(options):
    members = rows(10) + rows(4, "test")
    shards = assigned(options(), members)
    assert list(shards) == [
        *(f"v-test-0000{i}-of-00003.tfrecord" for i in range(3)),
        *(f"v-train-0000{i}-of-00003.tfrecord" for i in range(3)),
    ]
    assert sorted(i for ids in shards.values() for i in ids) == sorted(r.id for r in members)
    sizes = [len(ids) for name, ids in shards.items() if "train" in name]
    assert sorted(sizes) == [3, 3, 4]


def test_assignment_does_not_depend_on_the_order_of_the_source(options):
    members = rows(20)
    assert assigned(options(), members) == assigned(options(), members[::-1])


def test_assignment_mixes_the_source(options):
    [ids, *_] = assigned(options(shards=1), rows(50)).values()
    assert ids != sorted(ids, key=lambda i: int(i.removeprefix("train")))


def test_assignment_is_the_same_in_every_version(options):
    """Shards of an interrupted ingest must fit those a newer version writes."""
    assert assigned(options(), rows(8)) == {
        "v-train-00000-of-00003.tfrecord": ["train5", "train0"],
        "v-train-00001-of-00003.tfrecord": ["train1", "train6", "train2"],
        "v-train-00002-of-00003.tfrecord": ["train3", "train4", "train7"],
    }


def test_no_shard_is_empty_by_plan(options):
    assert [len(ids) for ids in assigned(options(shards=100), rows(3)).values()] == [1, 1, 1]


def test_plan_is_continued_with_the_same_inputs(options):
    first, resumed = plan.prepare(options(), rows(5), ("a",))
    assert not resumed
    for same in (options(), options(workers=9, max_bad=0.7)):
        assert plan.prepare(same, rows(5)[::-1], ("a",)) == (first, True)


def test_data_that_moved_is_still_the_same(options):
    plan.prepare(options(), rows(5), ("a",))
    moved = [dataclasses.replace(row, path=row.path.replace("/v", "/w")) for row in rows(5)]
    assert plan.prepare(options(), moved, ("a",))[1]


@pytest.mark.parametrize(
    ("changes", "classes", "members", "complaint"),
    [
        ({"quality": 80}, ("a",), rows(5), "--quality: 90 then, 80 now"),
        ({"fps": 8.0, "short_side": 64}, ("a",), rows(5), "--short-side: 256 then, 64 now\n  --f"),
        ({"shards": 4}, ("a",), rows(5), "--shards: 3 then, 4 now"),
        ({"shards": None}, ("a",), rows(5), "--shard-mb: None then, 256.0 now"),
        ({"flip_changes_label": True}, ("a",), rows(5), "--flip-changes-label: False then, True"),
        ({}, ("a", "b"), rows(5), "classes: 1 then, 2 now; new 'b'"),
        ({}, ("b",), rows(5), "gone 'a'; new 'b'"),
        ({}, ("a",), rows(6), "rows of --source: 5 in train then, 6 in train now"),
        ({}, ("a",), rows(5, labels=("b",)), "same number, other content"),
        ({}, ("a",), rows(5, captions=("x",)), "same number, other content"),
        ({}, ("a",), rows(5, start=1.0), "same number, other content"),
        ({}, ("a",), rows(5, extra={"x": 1}), "same number, other content"),
    ],
)
def test_other_inputs_are_refused_and_named(options, changes, classes, members, complaint):
    plan.prepare(options(), rows(5), ("a",))
    with pytest.raises(ValueError, match="was begun with other options or inputs") as caught:
        plan.prepare(options(**changes), members, classes)
    assert complaint in str(caught.value) and "choose another --out" in str(caught.value)


def test_same_classes_in_another_order_are_refused(options):
    plan.prepare(options(), rows(5), ("a", "b"))
    with pytest.raises(ValueError, match="same names in another order"):
        plan.prepare(options(), rows(5), ("b", "a"))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"options": 3}', "\udcff"])
def test_unreadable_plan(options, tmp_path, text):
    (tmp_path / "plan.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"plan\.json: is not a readable plan"):
        plan.prepare(options(), rows(2), ("a",))


def test_plan_of_a_newer_version(options, tmp_path):
    plan.prepare(options(), rows(2), ("a",))
    content = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(ValueError, match="newer version"):
        plan.prepare(options(), rows(2), ("a",))


@pytest.mark.parametrize("name", ["manifest.json", "x-train-00000-of-00001.tfrecord"])
def test_directory_with_foreign_shards_is_refused(options, tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"holds {name} but no plan.json"):
        plan.prepare(options(), rows(2), ("a",))


def test_estimate_is_near_the_truth(tmp_path):
    path = make_video(tmp_path / "a.mp4", 40, height=240, width=320)
    row = Row(str(path), "a", "a", "train")
    for options in (DecodeOptions(), DecodeOptions(short_side=64), DecodeOptions(fps=5.0)):
        real = sum(map(len, decode_clip(str(path), options).frames))
        assert 0.3 < estimate.estimate_bytes(row, options) / real < 6
    whole = estimate.estimate_bytes(row, DecodeOptions())
    part = dataclasses.replace(row, start=1.0, end=2.0)
    assert estimate.estimate_bytes(part, DecodeOptions()) == pytest.approx(whole / 4)
    assert estimate.estimate_bytes(row, DecodeOptions(quality=50)) < whole / 2
    assert estimate.estimate_bytes(row, DecodeOptions(max_seconds=1.0)) == pytest.approx(whole / 4)


def test_shard_size_decides_the_number_of_shards(options, tmp_path):
    path = make_video(tmp_path / "a.mp4", 20, height=240, width=320)
    members = rows(40, path=str(path))
    members[3] = dataclasses.replace(members[3], path="missing.mp4")
    size = estimate.estimate_bytes(members[0], DecodeOptions())
    chosen = options(shards=None, shard_mb=size * 10.1 / 1e6, workers=0)
    the_plan, _ = plan.prepare(chosen, members, ("a",))
    assert the_plan.shards == {"train": 4}


def test_source_nothing_is_known_about_still_gets_a_plan(options):
    the_plan, _ = plan.prepare(options(shards=None, workers=0), rows(5), ("a",))
    assert the_plan.shards == {"train": 1}
