"""InternVid's JSONL with path templates, and JSON lists of {video, caption}."""

import json
import sys

import pytest

from data_pipelines.ingest import sources
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.records import manifest, schema
from tests.data_pipelines.ingest.clips import make_video

# Where Python says that a comma is one too many: at the comma, or at what follows it.
TRAILING = 1 if sys.version_info >= (3, 13) else 2


def read(path, **changes):
    return sources.read(IngestOptions(source=str(path), out="out", **changes))


@pytest.fixture
def internvid(tmp_path):
    def write(*changes: dict):
        lines = [
            {
                "YoutubeID": "-ab_C 1",
                "Start_timestamp": "00:00:01.000",
                "End_timestamp": "00:00:02.500",
                "Caption": "ein Mann läuft 🏃",
                "Aesthetic_Score": 4.5,
                "UMT_Score": 0.4375,
                **change,
            }
            for change in (changes or ({},))
        ]
        path = tmp_path / "iv.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def test_internvid_is_cut_from_whole_videos(internvid, tmp_path):
    path = internvid({}, {"Start_timestamp": "00:01:02.5", "End_timestamp": "00:01:04"})
    listing = read(path, path_template="{YoutubeID}.mp4", root=str(tmp_path / "v"))
    first, second = listing.rows
    assert first.path == second.path == str(tmp_path / "v" / "-ab_C 1.mp4")
    assert (first.start, first.end, second.start, second.end) == (1.0, 2.5, 62.5, 64.0)
    assert first.captions == ("ein Mann läuft 🏃",) and first.id == "-ab_C 1.mp4#1-2.500"
    scores = {"Aesthetic_Score": 4.5, "UMT_Score": 0.4375}
    assert first.extra == {"YoutubeID": "-ab_C 1", **scores}
    assert any("InternVid" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (
            "{YoutubeID}_{Start_timestamp}_{End_timestamp}.mp4",
            "-ab_C 1_00:00:01.000_00:00:02.500.mp4",
        ),
        ("{YoutubeID}/{start:.1f}-{end:06.2f}.webm", "-ab_C 1/1.0-002.50.webm"),
    ],
)
def test_template_with_times_names_clips_that_are_cut_already(internvid, template, name):
    listing = read(internvid(), path_template=template)
    [row] = listing.rows
    assert (row.name, row.id, row.start, row.end) == (name, name, None, None)
    assert row.extra["Start_timestamp"] == "00:00:01.000" and "End_timestamp" in row.extra
    assert any("already cut" in note for note in listing.notes)


def test_cut_can_be_said(internvid):
    [row] = read(internvid(), path_template="{YoutubeID}_{start}.mp4", cut="yes").rows
    assert (row.start, row.end) == (1.0, 2.5)
    [row] = read(internvid(), path_template="{YoutubeID}.mp4", cut="no").rows
    assert (row.start, row.end, row.id) == (None, None, "-ab_C 1.mp4")


def test_score_may_be_missing_and_captions_empty(internvid):
    path = internvid({"Aesthetic_Score": None, "Caption": " "}, {"YoutubeID": "x"})
    listing = read(path, path_template="{YoutubeID}.mp4")
    assert "Aesthetic_Score" not in listing.rows[0].extra
    assert listing.rows[0].captions == () and "dropped 1 empty captions" in listing.notes


@pytest.mark.parametrize(
    ("change", "template", "complaint"),
    [
        ({}, None, r"iv\.jsonl line 1: no column 'path'.*--path-template"),
        ({}, "{YoutubeId}.mp4", r"line 1: has no 'YoutubeId', which --path-template"),
        ({}, "clip.mp4", "names no column"),
        ({}, "{YoutubeID.mp4", "--path-template"),
        ({}, "{0}.mp4 {}", "not a column name|has no '0'"),
        ({}, "{Caption.__class__}", "is not a column name"),
        ({}, "{YoutubeID:d}", "does not fit its values"),
        ({"YoutubeID": None}, "{YoutubeID}.mp4", "line 1: has no 'YoutubeID'"),
        ({"End_timestamp": "00:00:01.0"}, "{YoutubeID}.mp4", "line 1: end 1 s is not after"),
        ({"Start_timestamp": "1;2"}, "{YoutubeID}.mp4", "line 1: start is '1;2'"),
    ],
)
def test_broken_internvid_is_explained(internvid, change, template, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(internvid(change), path_template=template)


def test_duplicate_clips_are_refused(internvid):
    with pytest.raises(ValueError, match=r"line 1 and iv\.jsonl line 2 have the same id"):
        read(internvid({}, {}), path_template="{YoutubeID}.mp4")


def test_several_rows_of_one_video_become_several_records(internvid, tmp_path):
    make_video(tmp_path / "-ab_C 1.mp4", 40)
    path = internvid({}, {"Start_timestamp": 3, "End_timestamp": 3.5, "UMT_Score": 0.25})
    out = tmp_path / "out"
    options = IngestOptions(
        source=str(path), out=str(out), path_template="{YoutubeID}.mp4", workers=0, shards=1
    )
    ingest(options, quiet=True)
    _, source = manifest.open_split(out, "train")
    records = sorted(map(schema.decode, source), key=lambda record: record.start_us)
    assert [len(record.frames) for record in records] == [15, 5]
    assert [record.extra["UMT_Score"] for record in records] == [0.4375, 0.25]


@pytest.fixture
def annotations(tmp_path):
    def write(content, name: str = "train.json"):
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_list_of_videos_and_captions(annotations, tmp_path):
    path = annotations(
        [
            {"video": "a/b.mp4", "caption": "one ü"},
            {"video": "c.mp4", "caption": ["two", "", "three"], "answer": 1},
            {"video": "d.mp4", "caption": "no", "captions": ["yes"], "asr_captions": "said"},
            {"image": "e.jpg", "caption": "four"},
        ]
    )
    listing = read(path, root=str(tmp_path / "data"))
    assert [row.captions for row in listing.rows] == [
        ("one ü",),
        ("two", "three"),
        ("yes",),
        ("four",),
    ]
    assert listing.rows[0].path == str(tmp_path / "data" / "a/b.mp4")
    assert listing.rows[1].extra == {"answer": 1}
    assert listing.rows[2].extra == {"asr_captions": "said"}
    assert any("1 entries have 'caption' and 'captions'" in note for note in listing.notes)


def test_limits_in_frame_numbers_are_reported(annotations):
    listing = read(annotations([{"video": "a.mp4", "caption": "x", "video_start_frame": 3}]))
    assert listing.rows[0].extra == {"video_start_frame": 3}
    assert any("limit the video by frame numbers" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('[{"video": "a.mp4",\n}]', rf"train\.json line {TRAILING}: is not JSON"),
        ({"database": {}}, "is a JSON dict, expected a list"),
        ([{"video": "a.mp4"}, 3], r"train\.json entry 2: is a int"),
        ([{"audio": "a.wav", "caption": "x"}], "entry 1: has only audio"),
        ([{"clip": "a.mp4"}], r"entry 1: no column 'path'.*--columns path=clip"),
        ([{"video": ""}], "entry 1: the path is empty"),
        ([], "lists no videos"),
    ],
)
def test_broken_json_is_explained(annotations, content, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(annotations(content))


def test_json_with_other_names(annotations):
    path = annotations([{"clip": "a.mp4", "text": "t"}])
    [row] = read(path, columns={"path": "clip", "caption": "text"}).rows
    assert (row.name, row.captions) == ("a.mp4", ("t",))
