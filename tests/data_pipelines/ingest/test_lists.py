"""Lists without a header: Kinetics, raw frames, pre-training mixtures, ActivityNet."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.ingest import labels, sources
from data_pipelines.ingest.frames import FrameFolder
from data_pipelines.ingest.options import IngestOptions


def read(path, **changes):
    return sources.read(IngestOptions(source=str(path), out="out", **changes))


@pytest.fixture
def listed(tmp_path):
    def write(text: str, name: str = "train.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return path

    return write


def folder(row) -> tuple[int, int]:
    frames = FrameFolder.parse(row.path)
    return frames.first, frames.count


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
@pytest.mark.parametrize("name", ["train.csv", "train.txt", "train"])
def test_kinetics(listed, tmp_path, separator, name):
    text = f"a b/ü, x.mp4{separator}3\n\nc.mp4{separator}0\r\n"
    listing = read(listed(text, name))
    assert [(row.name, row.labels) for row in listing.rows] == [
        ("a b/ü, x.mp4", ("3",)),
        ("c.mp4", ("0",)),
    ]
    assert listing.rows[0].path == str(tmp_path / "a b/ü, x.mp4")
    assert listing.rows[1].where.endswith("line 3")
    assert "Kinetics list: columns path, label" in listing.notes[0]


def test_class_names_need_a_comma_or_the_format(listed):
    [row] = read(listed("a b.mp4,sit down\n"), format="kinetics").rows
    assert (row.name, row.labels) == ("a b.mp4", ("sit down",))
    with pytest.raises(ValueError, match=r"t\.txt line 1: expected a path and a label"):
        read(listed("a.mp4 sitting\n", "t.txt"))
    [row] = read(listed("a.mp4 sitting\n", "t.txt"), format="kinetics").rows
    assert row.labels == ("sitting",)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("val.csv", "val"),
        ("k400_test_list.txt", "test"),
        ("trainval.csv", "train"),
        ("train_val.csv", "train"),
        ("clips.csv", "train"),
    ],
)
def test_split_is_that_of_the_file_name(listed, name, split):
    listing = read(listed("a.mp4 0\n", name))
    assert listing.rows[0].split == split and f"split {split}" in listing.notes[0]


def test_split_that_was_asked_for_wins(listed):
    assert read(listed("a.mp4 0\n", "val.csv"), split="dev").rows[0].split == "dev"


def test_raw_frames(listed, tmp_path):
    path = listed("x/1 24 7\nx/2 30 0\n", "val.csv")
    listing = read(path, frame_fps=12, frame_start=0, frame_template="f{:03d}.png")
    first = FrameFolder.parse(listing.rows[0].path)
    assert first == FrameFolder(str(tmp_path / "x/1"), "f{:03d}.png", 0, 24, 12.0)
    assert first.file(2) == str(tmp_path / "x/1" / "f002.png")
    assert [(row.id, row.labels) for row in listing.rows] == [("x/1", ("7",)), ("x/2", ("0",))]
    assert "raw-frame list: columns path, frames, label" in listing.notes[0]


def test_address_survives_any_name(tmp_path):
    source = FrameFolder("a&b=c?%41 ü\udcff\n", "{:d} &.jpg", 0, 3, 29.97)
    assert FrameFolder.parse(source.address()) == source


def test_raw_frames_need_a_rate(listed):
    with pytest.raises(ValueError, match=r"train\.csv line 1: 'x/1'.*--frame-fps \(12 for"):
        read(listed("x/1 24 7\n"))


def test_mixture_of_videos_and_frame_folders(listed):
    listing = read(listed("a.mp4 0 -1\nx/1 5 24\nx/1 29 24\n"), frame_fps=12)
    video, *frames = listing.rows
    assert video.name == video.id == "a.mp4" and not video.path.startswith("frames:")
    assert [folder(row) for row in frames] == [(5, 24), (29, 24)]
    assert [row.id for row in frames] == ["x/1#5+24", "x/1#29+24"]
    assert all(row.labels == () for row in listing.rows)


def test_labelled_mixture_and_negative_labels(listed):
    rows = read(listed("a.mp4 0 -1 4\nx 1 24 -1\n"), frame_fps=12).rows
    assert [row.labels for row in rows] == [("4",), ()]


def test_activitynet(listed):
    [row] = read(listed("v.mp4 100.5 10 20.5 3\n")).rows
    assert (row.start, row.end, row.labels, row.id) == (10.0, 20.5, ("3",), "v.mp4#10-20.5")


def test_columns_by_number(listed):
    path = listed("x 1 24 99\ny 3 12 98\n")
    rows = read(path, frame_fps=12, columns={"path": "1", "first": "2", "frames": "3"}).rows
    assert [folder(row) for row in rows] == [(1, 24), (3, 12)]


@pytest.mark.parametrize(
    ("text", "changes", "complaint"),
    [
        ("a.mp4 0\nb.mp4\n", {}, r"train\.csv line 2: expected path, label separated by blanks"),
        ("a,1\nb,run\n", {}, r"line 2: label is 'run', expected a whole number as in line 1"),
        ("a 24 1\nb x 2\n", {"frame_fps": 1}, r"line 2: frames is 'x', expected a number"),
        ("a 2.5 1\n", {"frame_fps": 1}, "frames is '2.5', expected a whole number"),
        ("v 9 5 4 3\n", {}, "not a span of time"),
        ("v 9 5 4 3 2\n", {}, "5 numbers after the path"),
        ("a 0\n", {"format": "rawframes"}, "'folder frames label'"),
        ("a 0\n", {"columns": {"path": "2", "label": "1"}}, "path=1"),
        ("a 0\n", {"columns": {"path": "1", "size": "2"}}, "--columns size=2"),
        ("a 3 0\n", {"columns": {"path": "1", "first": "2"}}, "'first' but not 'frames'"),
        ("a 24 1\n", {"frame_fps": 1, "frame_template": "x.jpg"}, "--frame-template"),
        ("a 0\na 0\n", {}, r"line 1 and train\.csv line 2 have the same id 'a'"),
        ("\udcff 0\n", {}, "not UTF-8"),
    ],
)
def test_broken_lists_are_explained(listed, text, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(listed(text), **changes)


@pytest.mark.parametrize(
    ("name", "text", "format"),
    [
        ("a.csv", "path,label\nx.mp4,1\n", "table"),
        ("a.csv", "file,caption\nx.mp4,word\n", "table"),
        ("a.csv", "file,class\nx.mp4,word\n", "table"),
        ("a.csv", "x.mp4 1\n", "kinetics"),
        ("a.csv", "\ufeffx.mp4,1\n", "kinetics"),
        ("a.txt", "x.mp4 1\n", "kinetics"),
        ("a.tsv", "path\tlabel\n", "table"),
        ("a.jsonl", '{"path": "x"}\n', "table"),
        ("a.json", "[]", "json"),
    ],
)
def test_detection(listed, name, text, format):
    assert sources.detect(IngestOptions(source=str(listed(text, name)), out="o")) == format


def test_named_format_overrules_the_looks(listed):
    path = listed("path 3\nx.mp4 4\n")
    assert sources.detect(IngestOptions(source=str(path), out="o", format="table")) == "table"


ODD = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ODD, st.sampled_from([" ", ",", ""]), ODD | st.integers().map(str))))
def test_fuzz(tmp_path, cells):
    path = tmp_path / "train.csv"
    path.write_text("".join(f"{a}{s}{b}\n" for a, s, b in cells), encoding="utf-8")
    try:
        listing = read(path, frame_fps=1)
    except ValueError:
        return
    assert json.dumps([row.id for row in listing.rows])


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ('"a, b.mp4",1', "a, b.mp4", "1"),
        ('"a, b.mp4";"1"', "a, b.mp4", "1"),
        ('"a ""b"".mp4", "1"', 'a "b".mp4', "1"),
        ('"a b.mp4" 1', "a b.mp4", "1"),
        ('a "b" c.mp4,1', 'a "b" c.mp4', "1"),
        ('a "b" c.mp4 1', 'a "b" c.mp4', "1"),
        ('a, "b".mp4,1', 'a, "b".mp4', "1"),
        ('"a.mp4 1', '"a.mp4', "1"),
        ("a;b.mp4 1", "a;b.mp4", "1"),
    ],
)
def test_paths_in_quotation_marks(listed, line, path, label):
    [row] = read(listed(f"{line}\n")).rows
    assert (row.name, row.labels) == (path, (label,))


def test_quoted_class_names(listed):
    [row] = read(listed('"a, b.mp4","run, fast"\n'), format="kinetics").rows
    assert (row.name, row.labels) == ("a, b.mp4", ("run, fast",))


@pytest.mark.parametrize("first", ["1", "1.0"])
def test_labels_may_be_written_as_floats(listed, first):
    rows = read(listed(f"a.mp4 {first}\nb.mp4 2.0\nc.mp4 -1.0\nd.mp4 nan\ne.mp4 3\n")).rows
    _, classes = labels.resolve(rows, None)
    assert classes == ("0", "1", "2", "3")
    found = [row.labels for row in labels.resolve(rows, None)[0]]
    assert found == [("1",), ("2",), (), (), ("3",)]


def test_a_negative_label_of_a_folder_of_frames_is_none(listed):
    """Taken for the frames of a mixture, 24 and 30 would be the numbers of the first image."""
    rows = read(listed("x/1 24 7\nx/2 30 -1\n"), frame_fps=12).rows
    assert [folder(row) for row in rows] == [(1, 24), (1, 30)]
    assert [row.labels for row in rows] == [("7",), ()]


def test_bad_times_cost_their_row(listed):
    text = "a 9 1 2 3\nb 9 5 4 3\nc 9 nan 4 3\nd 9 1 " + "9" * 400 + " 3\ne 9 1 2 0\n"
    rows = read(listed(text)).rows
    assert [bool(row.problem) for row in rows] == [False, True, True, True, False]
    assert rows[1].id == "train.csv line 2" and rows[1].name == "b"


@pytest.mark.parametrize("count", ["9" * 400, "99999999999"])
def test_absurd_counts_of_frames_cost_their_row(listed, count):
    rows = read(listed(f"a 24 1\nb {count} 2\n"), frame_fps=12).rows
    assert [bool(row.problem) for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("trainlist01.txt", "train"),
        ("testlist02.txt", "test"),
        ("training.csv", "train"),
        ("my_testing_list.txt", "test"),
        ("vallist.txt", "val"),
        ("contest.txt", "train"),
    ],
)
def test_split_words_within_file_names(listed, name, split):
    assert read(listed("a.mp4 0\n", name)).rows[0].split == split


def test_paths_only(listed):
    """UCF101's test lists."""
    text = "Run/v_Run_g01_c01.avi\nSit down/v_g01_c01.avi\n"
    listing = read(listed(text, "testlist01.txt"))
    assert [(row.name, row.labels, row.split) for row in listing.rows] == [
        ("Run/v_Run_g01_c01.avi", ("Run",), "test"),
        ("Sit down/v_g01_c01.avi", ("Sit down",), "test"),
    ]
    assert "the class of a video is its folder" in listing.notes[1]
    rows = read(listed(text, "testlist01.txt"), columns={"path": "1"}).rows
    assert [row.labels for row in rows] == [(), ()]
    rows = read(listed("a.mp4\nRun/b.mp4\n", "a.csv")).rows
    assert [(row.name, row.labels) for row in rows] == [("a.mp4", ()), ("Run/b.mp4", ())]


def test_hmdb51(listed, tmp_path):
    """Read as `path label`, what a video is for would be its class."""
    listed("a b.avi 1 \nc.avi 2 \nd.avi 0 \n", "sit_test_split1.txt")
    listed("a.avi 1\n", "sit_test_split2.txt")
    (tmp_path / "brush_hair").mkdir()
    path = listed("a b.avi 2 \n", "brush_hair_test_split1.txt")
    listing = read(path)
    assert [(row.id, row.split, row.labels) for row in listing.rows] == [
        ("brush_hair/a b.avi", "test", ("brush_hair",)),
        ("sit/a b.avi", "train", ("sit",)),
        ("sit/c.avi", "test", ("sit",)),
    ]
    assert listing.rows[0].path == str(tmp_path / "brush_hair" / "a b.avi")
    assert listing.rows[1].path == str(tmp_path / "a b.avi")
    assert "2 files *_test_split1.txt" in listing.notes[0] and "1 videos" in listing.notes[0]
    assert {row.labels for row in read(path, format="kinetics").rows} == {("2",)}
    listed("a.avi 3\n", "run_test_split1.txt")
    with pytest.raises(ValueError, match=r"run_test_split1\.txt line 1: expected 'NAME\.avi N'"):
        read(path)


def test_a_frame_template_is_refused_by_its_size(listed):
    for template in ("{:>999999999}", "{0.__class__}{0}", "{:{0}}", "x" * 5000 + "{}"):
        with pytest.raises(ValueError, match="--frame-template"):
            read(listed("a 24 1\n"), frame_fps=1, frame_template=template)
