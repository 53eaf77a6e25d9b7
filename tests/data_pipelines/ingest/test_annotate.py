"""Segments, boxes and turns from a table to the record."""

import json

import pytest

from data_pipelines.ingest import labels, sources
from data_pipelines.ingest.annotate import place, read_boxes, read_segments, read_turns
from data_pipelines.ingest.container import VideoError
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.plan import hash_rows
from data_pipelines.ingest.rows import RowBox, RowSegment
from data_pipelines.ingest.run import ingest
from data_pipelines.records import manifest, schema
from data_pipelines.records.dataset import label_of, open_dataset
from data_pipelines.records.schema import Box, Segment, Turn
from tests.data_pipelines.ingest.clips import make_video

BOX = {"time": 1, "y1": 0.1, "x1": 0.2, "y2": 0.9, "x2": 0.6}


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(source, out, **changes):
    options = {"workers": 0, "shards": 1, **changes}
    report = ingest(IngestOptions(source=str(source), out=str(out), **options), quiet=True)
    records = {}
    for split in report.manifest.splits:
        _, shards = manifest.open_split(out, split)
        records |= {record.media_id: record for record in map(schema.decode, shards)}
    return report, records


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_segments_are_read_and_sorted():
    cell = [
        {"start": "00:01:02.5", "end": 70, "label": " pour ", "caption": "pours tea, ü"},
        {"start": 1.5, "end": 4},
        {"start": 1.5, "end": 2, "label": 7},
    ]
    expected = (
        RowSegment(1.5, 2.0, "7", ""),
        RowSegment(1.5, 4.0),
        RowSegment(62.5, 70.0, "pour", "pours tea, ü"),
    )
    assert read_segments(cell) == expected
    assert read_segments(json.dumps(cell)) == expected
    assert read_segments(None) == read_segments("") == read_segments([]) == ()


def test_boxes_are_read_and_sorted():
    cell = [
        {**BOX, "time": 2, "labels": ["stand", "talk", "stand"], "track": 3},
        {**BOX, "label": "sit"},
        {**BOX, "time": 2, "track": 1},
    ]
    expected = (
        RowBox(1.0, 0.1, 0.2, 0.9, 0.6, ("sit",)),
        RowBox(2.0, 0.1, 0.2, 0.9, 0.6, (), 1),
        RowBox(2.0, 0.1, 0.2, 0.9, 0.6, ("stand", "talk"), 3),
    )
    assert read_boxes(cell) == expected == read_boxes(json.dumps(cell))


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("[{", "segments is not JSON"),
        ([[1, 2]], "segments is not a list of objects"),
        ({"start": 1}, "segments is not a list of objects"),
        (3, "segments is not a list of objects"),
        ([{"start": 1}], "segment 0: end is None, expected seconds"),
        ([{"start": 1, "end": 1}], "segment 0 ends at 1 s, not after its start at 1 s"),
        ([{"start": -1, "end": 1}], "segment 0: start is -1, expected seconds"),
        ([{"start": True, "end": 2}], "segment 0: start is True"),
        ([{"start": 0, "end": float("inf")}], "segment 0: end is inf"),
        ([{"start": 0, "end": 10**400}], "segment 0: end is 1000"),
        ([{"start": 0, "end": 1}, {"start": 0, "end": 1, "lable": "x"}], "segment 1 has 'lable'"),
        ([{"start": 0, "end": 1, "label": ["x"]}], "label is .*, expected text"),
    ],
)
def test_segments_that_cannot_be_understood(cell, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_segments(cell)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"y1": 0.9}, "box 0 is y 0.9 to 0.9, x 0.2 to 0.6; expected y1 < y2"),
        ({"y2": 0.1 + 1e-10}, "expected y1 < y2"),  # no difference in single precision
        ({"x2": 320}, "box 0: x2 is 320, expected a share of the image from 0 to 1"),
        ({"x2": None}, "box 0: x2 is None"),
        ({"time": "later"}, "box 0: time is 'later'"),
        ({"track": "a"}, "box 0: track is 'a', expected an integer"),
        ({"track": 2**63}, "expected an integer"),
        ({"label": "a", "labels": ["b"]}, "has both 'label' and 'labels'"),
        ({"box": [1]}, "box 0 has 'box', expected label, labels, time, track, x1"),
    ],
)
def test_boxes_that_cannot_be_understood(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_boxes([{**BOX, **changes}])


def test_placing_keeps_the_clock_of_the_source_video():
    segments = (RowSegment(10.0, 12.0, "a"), RowSegment(11.5, 15.004, "", "text"))
    boxes = (RowBox(10.0, 0, 0, 1, 1, ("b", "a"), 4),)
    placed = place(segments, boxes, 10_000_000, 15_000_000, {"a": 0, "b": 1})
    assert placed.segments == (
        Segment(10_000_000, 12_000_000, 0, "a"),
        Segment(11_500_000, 15_000_000, -1, "", "text"),
    )
    assert placed.boxes == (Box(10_000_000, 0, 0, 1, 1, (1, 0), ("b", "a"), 4),)
    assert placed.remarks == ()


def test_segment_beyond_the_end_is_cut_and_said():
    placed = place((RowSegment(3, 9),), (), 2_000_000, 5_000_000, {})
    assert placed.segments == (Segment(3_000_000, 5_000_000),)
    assert placed.remarks == ("segment 3 to 9 s was cut at 5 s, the end of the clip",)


@pytest.mark.parametrize(
    ("segments", "boxes", "complaint"),
    [
        ((RowSegment(1, 3),), (), "segment 1 to 3 s begins before the clip, which covers 2 to 5 s"),
        ((RowSegment(5, 6),), (), "segment 5 to 6 s begins after the clip"),
        ((), (RowBox(1.9, 0, 0, 1, 1),), "the box at 1.9 s is outside the clip"),
        ((), (RowBox(5.1, 0, 0, 1, 1),), "the box at 5.1 s is outside the clip"),
    ],
)
def test_annotations_outside_the_clip_reject_the_row(segments, boxes, complaint):
    with pytest.raises(VideoError, match=complaint) as caught:
        place(segments, boxes, 2_000_000, 5_000_000, {})
    assert caught.value.stage == "label"


def test_whole_way_from_table_to_record(tmp_path):
    make_video(tmp_path / "a.mp4", 50)
    segments = [
        {"start": 2.5, "end": 3, "label": "jump", "caption": "ein Sprung"},
        {"start": 2, "end": 3.5},
    ]
    boxes = [{**BOX, "time": 2.2, "labels": ["run", "jump"], "track": 5}]
    source = table(
        tmp_path / "t.jsonl",
        [
            {"path": "a.mp4", "segments": segments, "id": "whole"},
            {"path": "a.mp4", "segments": segments, "boxes": boxes, "start": 2, "end": 4},
            {"path": "a.mp4", "segments": segments, "start": 2.2, "id": "late"},
            {"path": "a.mp4", "boxes": [{**BOX, "x2": 7}], "id": "broken"},
            {"path": "a.mp4", "segments": [{"start": 4, "end": 9}], "id": "over"},
        ],
    )
    report, records = run(source, tmp_path / "out", max_bad=1.0)
    assert report.manifest.classes == ("jump", "run")
    assert set(records) == {"whole", "a.mp4#2-4", "over"}
    expected = (
        Segment(2_000_000, 3_500_000),
        Segment(2_500_000, 3_000_000, 0, "jump", "ein Sprung"),
    )
    part = records["a.mp4#2-4"]
    assert records["whole"].segments == part.segments == expected
    assert part.boxes == (Box(2_200_000, 0.1, 0.2, 0.9, 0.6, (1, 0), ("run", "jump"), 5),)
    # Same clock as the frames, so that a box finds its image.
    assert part.timestamps_us[2] == part.boxes[0].time_us and part.start_us == 2_000_000
    rejected = {line["id"]: line for line in lines(tmp_path / "out" / "rejected.jsonl")}
    assert set(rejected) == {"late", "broken"}
    assert {line["stage"] for line in rejected.values()} == {"label"}
    assert "begins before the clip" in rejected["late"]["error"]
    assert rejected["broken"]["error"].startswith("t.jsonl line 4: box 0: x2 is 7")
    [warning] = lines(tmp_path / "out" / "warnings.jsonl")
    assert (warning["id"], warning["kind"]) == ("over", "annotation")


def test_labels_of_segments_and_boxes_are_classes(tmp_path):
    rows = [
        {"path": "a.mp4", "segments": [{"start": 0, "end": 1, "label": "a"}]},
        {"path": "b.mp4", "boxes": [{**BOX, "label": "z"}]},
    ]
    source = table(tmp_path / "t.jsonl", rows)
    listed = sources.read(IngestOptions(source=str(source), out="out")).rows
    found, classes = labels.resolve(listed, None)
    assert classes == ("a", "z") and not any(row.problem for row in found)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    found, _ = labels.resolve(listed, str(tmp_path / "classes.txt"))
    assert found[0].problem == "" and "label 'z' is not one of the 2 classes" in found[1].problem
    changed = [dict(row) for row in rows]
    changed[0]["segments"] = [{"start": 0, "end": 2, "label": "a"}]
    other = sources.read(
        IngestOptions(source=str(table(tmp_path / "u.jsonl", changed)), out="out")
    ).rows
    assert hash_rows(listed) != hash_rows(other)


def test_several_labels_and_captions_reach_the_reader(tmp_path):
    make_video(tmp_path / "a.mp4", 5)
    captions = ["one", "", "zwei ü", "猫"]
    row = {"path": "a.mp4", "labels": ["run", "jump"], "captions": captions}
    report, _ = run(table(tmp_path / "t.jsonl", [row]), tmp_path / "out")
    dataset = open_dataset(str(tmp_path / "out"), "train")
    record = dataset.load(0)
    assert record.labels == (1, 0) and record.label_names == ("run", "jump")
    assert record.captions == ("one", "zwei ü", "猫")
    assert label_of(record) == 1
    assert report.manifest.split("train").label_counts == (1, 1)


SAID = [{"role": "user", "text": "What is it?"}, {"role": "assistant", "text": "Tea, ü."}]


def test_turns_are_read_in_their_order():
    expected = (Turn("user", "What is it?"), Turn("assistant", "Tea, ü."))
    assert read_turns(SAID) == expected == read_turns(json.dumps(SAID))
    assert read_turns(None) == read_turns("") == read_turns([]) == ()


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("[{", "turns is not JSON"),
        ("What is it?", "turns is not JSON"),
        ([["user", "What is it?"]], "turns is not a list of objects"),
        ([{"text": "Tea."}], "turn 0 has no role"),
        ([*SAID, {"role": "user", "text": " "}], "turn 2 has no text"),
        ([{"from": "human", "value": "x"}], "turn 0 has 'from', expected role, text"),
        ([{"role": "user", "text": ["x"]}], "turn 0: text is ['x'], expected text"),
    ],
)
def test_turns_that_cannot_be_understood(cell, complaint):
    with pytest.raises(ValueError) as failure:
        read_turns(cell)
    assert complaint in str(failure.value)


def test_turns_from_both_kinds_of_table_reach_the_record(tmp_path):
    make_video(tmp_path / "a.mp4", 8)
    table(tmp_path / "t.jsonl", [{"path": "a.mp4", "turns": SAID}, {"path": "b", "turns": "x"}])
    cell = json.dumps(SAID).replace('"', '""')
    (tmp_path / "t.csv").write_text(f'path,talk\na.mp4,"{cell}"\n', encoding="utf-8")
    report, found = run(tmp_path / "t.jsonl", tmp_path / "j")
    assert found["a.mp4"].turns == read_turns(SAID) and report.rejected == {"label": 1}
    assert "turns is not JSON" in lines(tmp_path / "j" / "rejected.jsonl")[0]["error"]
    _, named = run(tmp_path / "t.csv", tmp_path / "c", columns={"turns": "talk"})
    assert named["a.mp4"].turns == read_turns(SAID)


def test_what_is_said_is_part_of_the_inputs_and_nothing_else_changed_them(tmp_path):
    rows = [{"path": "a.mp4"}, {"path": "a.mp4", "turns": SAID}, {"path": "a.mp4", "turns": []}]
    digests = []
    for row in rows:
        options = IngestOptions(
            source=str(table(tmp_path / "t.jsonl", [row])), out=str(tmp_path / "o")
        )
        digests.append(hash_rows(sources.read(options).rows))
    # Of a plan that was written before rows had turns.
    assert (
        digests[0]
        == digests[2]
        == "d1affdb32449b0fb65657b314f43bf21971fd6b9fb211087f718674d49fd5aba"
    )
    assert digests[1] != digests[0]
