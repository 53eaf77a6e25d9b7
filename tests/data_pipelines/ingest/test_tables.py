"""CSV, TSV and JSONL tables."""

import contextlib
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.ingest import cells, sources
from data_pipelines.ingest.options import IngestOptions


def read(path, **changes):
    return sources.read(IngestOptions(source=str(path), out="out", **changes))


def test_csv_with_all_columns(table, tmp_path):
    path = table(
        "path,labels,captions,start,end,split,id,view,weight\n"
        '"a, b.mp4",run|jump,"[""one"", ""two""]",1.5,00:01:02.250,val,x1,3,0.5\n'
    )
    [row] = read(path).rows
    assert row.path == str(tmp_path / "a, b.mp4") and row.name == "a, b.mp4"
    assert row.labels == ("run", "jump") and row.captions == ("one", "two")
    assert (row.start, row.end) == (1.5, 62.25)
    assert (row.split, row.id) == ("val", "x1")
    assert row.extra == {"view": 3, "weight": 0.5}


def test_jsonl_with_the_same_keys(table):
    path = table(
        [
            {
                "path": "a.mp4",
                "label": 7,
                "captions": ["one", "zwei ü"],
                "start": 1,
                "regions": [[1, 2], [3, 4]],
                "ok": True,
                "none": None,
            }
        ]
    )
    [row] = read(path).rows
    assert row.labels == ("7",) and row.captions == ("one", "zwei ü") and row.start == 1.0
    assert row.extra == {"regions": "[[1, 2], [3, 4]]", "ok": 1}


def test_tsv_and_byte_order_mark(table):
    [row] = read(table("\ufeffpath\tlabel\na.mp4\ttwo words\n", "t.tsv")).rows
    assert row.labels == ("two words",)


def test_defaults(table):
    first, second = read(table("path\na.mp4\nb.mp4\n"), split="test").rows
    assert (first.id, first.split, first.labels, first.captions) == ("a.mp4", "test", (), ())
    assert second.start is None and second.end is None


def test_segments_of_one_video_get_ids_of_their_own(table):
    rows = read(table("path,start,end\na.mp4,0,5\na.mp4,5,10.25\na.mp4,12,\n")).rows
    assert [row.id for row in rows] == ["a.mp4#0-5", "a.mp4#5-10.250", "a.mp4#12-"]


def test_root_and_absolute_paths(table):
    rows = read(table("path\na.mp4\n/data/b.mp4\n"), root="/videos").rows
    assert [row.path for row in rows] == ["/videos/a.mp4", "/data/b.mp4"]


def test_columns_can_be_renamed(table):
    path = table("video,class,sentence\na.mp4,run,hello\n")
    [row] = read(path, columns={"path": "video", "label": "class", "caption": "sentence"}).rows
    assert (row.name, row.labels, row.captions) == ("a.mp4", ("run",), ("hello",))
    assert not row.extra


def test_column_that_is_replaced_becomes_an_extra(table):
    path = table("path,file,label,class_id\nold.mp4,a.mp4,run,3\n")
    [row] = read(path, columns={"path": "file", "label": "class_id"}).rows
    assert (row.name, row.labels) == ("a.mp4", ("3",))
    assert row.extra == {"path": "old.mp4", "label": "run"}


def test_column_that_is_nowhere_is_an_error(table):
    """Otherwise a typing mistake would give an unlabelled dataset."""
    path = table("path,class\na.mp4,run\n")
    with pytest.raises(ValueError, match=r"no column 'clas' for --columns label=clas; found class"):
        read(path, columns={"label": "clas"})


def test_a_label_is_one_label_whatever_it_contains(table):
    [row] = read(table('path,label\na.mp4,"[x] a|b, c"\n')).rows
    assert row.labels == ("[x] a|b, c",)


def test_caption_that_begins_with_a_bracket_is_text(table):
    [row] = read(table("path,caption\na.mp4,[music] plays\n")).rows
    assert row.captions == ("[music] plays",)


def test_empty_captions_are_dropped_and_counted(table):
    listing = read(
        table([{"path": "a.mp4", "captions": ["", "  ", "x"]}, {"path": "b.mp4", "caption": ""}])
    )
    assert [row.captions for row in listing.rows] == [("x",), ()]
    assert "dropped 3 empty captions" in listing.notes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2", ""], [1, 2, None]),
        (["1", "2.5"], [1.0, 2.5]),
        (["1", "x"], ["1", "x"]),
        (["007", "1"], ["007", "1"]),  # an identifier
        (["1e3", "-0.5"], [1000.0, -0.5]),
        (["99999999999999999999", "1"], ["99999999999999999999", "1"]),
        (["nan", "1", "2.5"], [None, 1.0, 2.5]),  # a missing value, as an empty cell
        (["NaN", "x"], ["NaN", "x"]),
    ],
)
def test_extra_columns_get_one_type(table, values, expected):
    path = table("path,x\n" + "".join(f"{i}.mp4,{value}\n" for i, value in enumerate(values)))
    found = [row.extra.get("x") for row in read(path).rows]
    assert found == expected and [type(v) for v in found] == [type(v) for v in expected]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty; expected a header"),
        ("path,label\n", "lists no videos"),
        ("video_path,label\na.mp4,x\n", "no column 'path'; found video_path.*path=video_path"),
        ("path,path\na,b\n", "two columns named 'path'"),
        ("path,label\na.mp4\n", "t.csv line 2: 1 cells, the header has 2"),
        ("path\na.mp4,b\n", "line 2: 2 cells, the header has 1"),
        ("path\n\n  ,\n", "2 cells"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,start\na.mp4,soon\n", "line 2: start is 'soon', expected seconds"),
        ("path,start\na.mp4,-1\n", "start is '-1'"),
        ("path,end\na.mp4,inf\n", "end is 'inf'"),
        ("path,start,end\na.mp4,5,5\n", "line 2: end 5 s is not after start 5 s"),
        ("path,label,labels\na.mp4,x,y\n", "both 'label' and 'labels'"),
        ("path,id\na.mp4,7\nb.mp4,8\nc.mp4,7\n", "line 2 and t.csv line 4 have the same id '7'"),
        ("path\na.mp4\na.mp4\n", "line 2 and t.csv line 3 have the same id 'a.mp4'"),
        ("path\n\udcff.mp4\n", "is not UTF-8"),
        ('path\na.mp4\n"b.mp4\n' + "x" * 200_000, "line 3: is not readable CSV"),
    ],
)
def test_broken_csv_is_explained(table, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(table(text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"path": "a.mp4"}\n{"path"\n', "t.jsonl line 2: is not JSON"),
        ('["a.mp4"]\n', "line 1: is a list, expected an object"),
        ('{"file": "a.mp4"}\n', "no column 'path'"),
        ("{}\n", "no column 'path'; found nothing"),
        ('{"path": ["a"]}\n', r"path is \['a'\], expected text"),
        ('{"path": "a", "label": {"x": 1}}\n', "label is {'x': 1}, expected text"),
        ('{"path": "a", "start": true}\n', "start is True"),
        ('{"path": "a", "id": 1.5}\n', "id is 1.5, expected text"),
        ("[" * 100_000 + "\n", "is not JSON"),
    ],
)
def test_broken_jsonl_is_explained(table, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(table(text, "t.jsonl"))


def test_unknown_suffix_and_unknown_column_name(table):
    with pytest.raises(ValueError, match=r"do not know how to read \.parquet"):
        read(table("x", "t.parquet"))
    with pytest.raises(ValueError, match="--columns names 'lable', expected one of path"):
        read(table("path\na.mp4\n"), columns={"lable": "x"})


def test_same_id_in_two_splits_is_allowed_with_a_note(table):
    listing = read(table("path,split\na.mp4,train\na.mp4,test\nb.mp4,test\n"))
    assert len(listing.rows) == 3
    assert "1 ids are in more than one split, for example 'a.mp4'" in listing.notes[0]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS)
KEYS = st.sampled_from(["path", "label", "labels", "caption", "captions", "start", "end", "id"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.dictionaries(KEYS | st.text(max_size=4), VALUES, max_size=6), max_size=4))
def test_fuzz_jsonl(tmp_path, lines):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps({"path": "a", **line}) + "\n" for line in lines))
    try:
        rows = read(path).rows
    except ValueError:
        return
    for row in rows:
        assert row.name and row.id
        for text in (row.id, *row.labels, *row.captions):
            text.encode()
        for value in row.extra.values():
            assert isinstance(value, str) or math.isfinite(value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_fuzz_csv(tmp_path, data):
    path = tmp_path / "f.csv"
    path.write_bytes(b"path,start,x\n" + data)
    with contextlib.suppress(ValueError):
        read(path)


def test_a_bad_row_is_rejected_and_the_others_are_kept(table):
    path = table(
        [
            {"path": "a.mp4", "start": 0, "end": 0.3, "label": 1},
            {"path": "a.mp4", "start": 3, "end": 3, "label": 1},
            {"path": "a.mp4", "start": 5, "end": 2, "split": "val"},
            {"path": "b.mp4", "caption": math.nan},
            {"path": "c.mp4", "end": math.nan},
            {"path": "d.mp4", "start": 10**400},
            {"path": "e.mp4", "label": 2.5},
            {"path": "f.mp4", "label": True},
            {"path": ["g"], "label": 1},
            {"file": "h.mp4"},
            {"path": "i.mp4", "label": math.nan, "caption": None},
            {"path": "j.mp4", "label": 2.0, "captions": ["x", None]},
        ]
    )
    rows = read(path).rows
    bad = [row for row in rows if row.problem]
    assert [row.where for row in bad] == [f"t.jsonl line {n}" for n in range(2, 11)]
    assert all(row.problem.startswith(row.where) and not row.labels for row in bad)
    assert [row.name for row in bad[:3]] == ["a.mp4", "a.mp4", "b.mp4"] and bad[1].split == "val"
    assert bad[7].name == "t.jsonl line 9"  # tells no file
    assert "start is 10000000000000000000... (401 digits), expected seconds" in bad[4].problem
    good = [row for row in rows if not row.problem]
    assert [(row.name, row.labels) for row in good] == [
        ("a.mp4", ("1",)),
        ("i.mp4", ()),
        ("j.mp4", ("2",)),
    ]


def test_a_bad_csv_row_is_rejected(table):
    path = table("path,start,end\na.mp4,0,1\na.mp4,2,1\na.mp4,soon,\n,0,1\na.mp4,nan,\n")
    assert [bool(row.problem) for row in read(path).rows] == [False, True, True, True, True]


def test_a_table_without_a_good_row_is_refused(table):
    with pytest.raises(ValueError, match=r"line 2: end 1 s .*\(none of the 2 rows can be used\)"):
        read(table("path,start,end\na.mp4,2,1\nb.mp4,3,1\n"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('path,caption\n1.mp4,fine\n2.mp4,"he said hello\n3.mp4,lost\n4.mp4,lost too\n', 3),
        ('path,caption\n1.mp4,"he said\n2.mp4,"fine"\n', 2),
        ('path,caption\n\n1.mp4,"a"b"\n', 3),
        ('path\tcaption\n1.mp4\t"he said\n2.mp4\tlost\n', 2),
    ],
)
def test_a_quotation_mark_that_is_not_closed_is_refused_with_its_line(table, text, line):
    name = "t.tsv" if "\t" in text else "t.csv"
    with pytest.raises(ValueError, match=rf"{name} line {line}: is not readable CSV.*doubled"):
        read(table(text, name))


def test_rows_over_several_lines_are_said(table):
    listing = read(table('path,caption\n1.mp4,"a\nb"\n2.mp4,c\n'))
    assert [row.captions for row in listing.rows] == [("a\nb",), ("c",)]
    assert listing.rows[1].where == "t.csv line 4"
    assert "1 rows of t.csv have line breaks inside quotation marks" in listing.notes[0]
    assert "lines 2 to 3" in listing.notes[0]


def test_a_cell_may_be_long(table):
    boxes = [{"time": 0, "y1": 0, "x1": 0, "y2": 1, "x2": 1, "label": "stand"}] * 4000
    cell = json.dumps(boxes).replace('"', '""')
    [row] = read(table(f'path,boxes,caption\na.mp4,"{cell}",{"x" * 200_000}\n')).rows
    assert len(row.boxes) == 4000 and len(row.captions[0]) == 200_000


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_a_line_of_gigabytes_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cells, "MAX_LINE", 1000)
    path = tmp_path / name
    head = '{"path": "' if name == "t.jsonl" else "path\n"
    with path.open("w") as file:
        file.write(head + "a" * 10_000)
    with pytest.raises(
        ValueError, match=rf"{name} line \d: is longer than 0 MiB; expected one clip"
    ):
        read(path)


@pytest.mark.parametrize(
    ("header", "separator", "name"),
    [
        ("path;label", ";", "t.csv"),
        ("path\tlabel", "\t", "t.csv"),
        ("path,label", ",", "t.tsv"),
        ("path|label", None, "t.csv"),
    ],
)
def test_other_separators_are_read_and_said(table, header, separator, name):
    if separator is None:
        with pytest.raises(ValueError, match=r"no column 'path'; found path\|label"):
            read(table(f"{header}\na.mp4|run\n", name))
        return
    listing = read(table(f"{header}\na, b.mp4{separator}run\n".replace(", ", "_"), name))
    assert (listing.rows[0].name, listing.rows[0].labels) == ("a_b.mp4", ("run",))
    assert "its columns are separated by" in listing.notes[0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("run/0.mp4,run\nsit/1.mp4,sit\n", "train.csv"),
        ("run/0.MKV;run\nsit/1.mp4;sit\n", "train.csv"),
        ("run/0.webm\trun\n", "train.tsv"),
        ("run,run/0.mp4\n", "train.csv"),
    ],
)
@pytest.mark.parametrize("columns", [{}, {"path": "run/0.mp4"}])
def test_the_hint_for_a_list_without_header_loses_nothing(table, text, name, columns):
    with pytest.raises(ValueError, match="so the file has no header.*--format kinetics"):
        read(table(text, name), columns=columns)
    if not text.startswith("run,"):
        rows = read(table(text, name), format="kinetics").rows
        assert [row.labels for row in rows] == [("run",), ("sit",)][: len(rows)]


def test_one_video_is_no_table(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"a\.mp4: one video; expected the folder"):
        read(tmp_path / "a.mp4")
