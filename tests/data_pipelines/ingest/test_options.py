"""Options: names, ranges, and which of them a resumed run must repeat."""

import pytest

from data_pipelines.ingest.options import IngestOptions


def options(**changes: object) -> IngestOptions:
    return IngestOptions(**{"source": "videos", "out": "shards", **changes})


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("some/My clips (2).csv", "My_clips_2"),
        ("clips.v2.jsonl", "clips_v2"),
        ("日本語.csv", "videos"),
    ],
)
def test_name_comes_from_the_source(source, name):
    assert options(source=source).name == name


def test_folder_gives_its_whole_name(tmp_path):
    (tmp_path / "set.v1").mkdir()
    assert options(source=str(tmp_path / "set.v1")).name == "set_v1"
    assert options(source=f"{tmp_path}/set.v1/").name == "set_v1"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "a/b"}, "--name: found 'a/b', expected letters"),
        ({"split": "train set"}, "--split"),
        (
            {"out": "gs://bucket/set", "runner": "beam"},
            "--out: found gs://bucket/set, expected a local",
        ),
        ({"shards": 0}, "--shards: found 0"),
        ({"shard_mb": 0.0}, "--shard-mb"),
        ({"shard_mb": float("nan")}, "--shard-mb"),
        ({"short_side": 255}, "--short-side: found 255, expected 0 .* even number"),
        ({"short_side": 8}, "--short-side"),
        ({"quality": 101}, "--quality: found 101, expected 1 to 100"),
        ({"fps": 0.0}, "--fps"),
        ({"max_seconds": -1.0}, "--max-seconds"),
        ({"min_frames": 0}, "--min-frames"),
        ({"partial": "maybe"}, "--partial: found maybe, expected accept or reject"),
        ({"audio": "mp3"}, "--audio: found mp3, expected off or pcm16"),
        ({"pixels": "square"}, "--pixels: found square, expected stored or display"),
        ({"storage": "webp"}, "--storage: found webp, expected jpeg or png"),
        ({"media": "text"}, "--media: found text, expected video or image or auto"),
        ({"workers": -1}, "--workers"),
        ({"max_bad": 2.0}, "--max-bad: found 2.0, expected a share from 0 to 1"),
        ({"stall_seconds": 0.0}, "--stall-seconds"),
    ],
)
def test_values_out_of_range_name_the_option(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        options(**changes)


def test_only_what_shapes_the_shards_must_be_repeated():
    first = options().plan_options()
    for same in ({"workers": 7}, {"max_bad": 0.5}, {"stall_seconds": 9.0}, {"out": "elsewhere"}):
        assert options(**same).plan_options() == first
    for other in (
        {"quality": 80},
        {"pixels": "display"},
        {"storage": "png"},
        {"shards": 3},
        {"name": "n"},
        {"flip_changes_label": True},
    ):
        assert options(**other).plan_options() != first
